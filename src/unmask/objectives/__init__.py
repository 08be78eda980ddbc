"""Ways of training the network, each a unit of its own: `unmask/plugins.py` lists them, docs/extending.md adds one."""
