"""Who may ask, how much, and what every answer forbids a browser."""
