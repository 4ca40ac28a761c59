"""Reference results, shipped as data: tables and figures with the command that made them."""
