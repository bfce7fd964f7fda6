"""The store's Lua scripts: each is one step that no replica sees half of. The keys are store.py's."""

from __future__ import annotations

# A record, and its entry in the index instead of that of the record before it, which may be of another time.
ENTER = """
local function enter(record, member)
    local before = redis.call('GET', KEYS[1])
    if before then redis.call('ZREM', KEYS[4], cjson.decode(before).member) end
    redis.call('SET', KEYS[1], record)
    redis.call('ZADD', KEYS[4], 0, member)
end
"""

CLAIM = (
    ENTER
    + """
local current = redis.call('GET', KEYS[1])
if current and cjson.decode(current).record.status == 'ready' then return {'ready', current} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'held', current or ''} end
local claim = redis.call('INCR', KEYS[5]) .. '-' .. ARGV[1]
redis.call('SET', KEYS[2], claim, 'PX', ARGV[2])
redis.call('SET', KEYS[6], claim)
local attempt = redis.call('INCR', KEYS[7])
redis.call('EXPIRE', KEYS[7], 86400)
redis.call('HDEL', KEYS[8], ARGV[5])
enter(ARGV[3], ARGV[4])
redis.call('SADD', KEYS[3], ARGV[5])
return {'claimed', claim, attempt}
"""
)

# The claim of a build that ended while Redis was away has nobody left to end it: it expires.
PUT = (
    ENTER
    + """
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('GET', KEYS[5]) == 'dropped' then return 0 end
enter(ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[5], 86400)
redis.call('SREM', KEYS[3], ARGV[3])
redis.call('HDEL', KEYS[6], ARGV[3])
return 1
"""
)

REOPEN = (
    ENTER
    + """
local current = redis.call('GET', KEYS[1])
if redis.call('EXISTS', KEYS[2]) == 1 or redis.call('GET', KEYS[5]) == 'dropped' then return 0 end
if current and cjson.decode(current).record.status ~= 'ready' then return 0 end
enter(ARGV[1], ARGV[2])
redis.call('SADD', KEYS[3], ARGV[3])
return 1
"""
)

OVERTAKEN = """
if redis.call('EXISTS', KEYS[6]) == 1 then return 'cancelled' end
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then return 'lost' end
local claimant = redis.call('GET', KEYS[7])
if claimant == 'dropped' then return 'cancelled' end
if claimant and claimant ~= ARGV[1] then return 'lost' end
"""

# A heartbeat that was under way while its build finished must not make it a building one again. What is
# being built does not wait, even if somebody who saw no lease has sent for it again.
RENEW = f"""{ENTER}{OVERTAKEN}
local current = redis.call('GET', KEYS[1])
local status = current and cjson.decode(current).record.status
if not holder and (status == 'ready' or status == 'failed') then return 'lost' end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
redis.call('SET', KEYS[7], ARGV[1])
redis.call('SET', KEYS[5], ARGV[5], 'PX', ARGV[2])
enter(ARGV[3], ARGV[4])
redis.call('SADD', KEYS[3], ARGV[6])
redis.call('HDEL', KEYS[9], ARGV[6])
return 'held'
"""

FINISH = f"""{ENTER}{OVERTAKEN}
enter(ARGV[2], ARGV[3])
redis.call('SREM', KEYS[3], ARGV[4])
redis.call('HDEL', KEYS[9], ARGV[4])
redis.call('DEL', KEYS[2], KEYS[5], KEYS[8])
redis.call('SET', KEYS[7], ARGV[1], 'EX', 86400)
return 'finished'
"""

RELEASE = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1], KEYS[2], KEYS[3]) end
return 'released'
"""

EXPEL = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] or (redis.call('GET', KEYS[2]) or '') ~= ARGV[2] then return 0 end
return redis.call('DEL', KEYS[1], KEYS[2])
"""

DROP = """
local current = redis.call('GET', KEYS[1])
local holder = redis.call('GET', KEYS[2])
if holder then redis.call('SET', 'eqnet:cancelled:' .. holder, 1, 'EX', 3600) end
if current then redis.call('ZREM', KEYS[4], cjson.decode(current).member) end
redis.call('SREM', KEYS[3], ARGV[1])
redis.call('HDEL', KEYS[8], ARGV[1])
redis.call('DEL', KEYS[1], KEYS[2], KEYS[5], KEYS[7])
redis.call('SET', KEYS[6], 'dropped', 'EX', 86400)
return current and 1 or 0
"""

UNDROP = """
if redis.call('GET', KEYS[1]) == 'dropped' then redis.call('DEL', KEYS[1]) end
return 1
"""
