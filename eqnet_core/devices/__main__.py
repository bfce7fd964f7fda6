"""`python -m eqnet_core.devices`: the catalogue as a Markdown page, on standard output."""

import sys

from eqnet_core.devices.catalogue import load_catalogue
from eqnet_core.devices.page import devices_page

sys.stdout.write(devices_page(load_catalogue()))
