"""What both main scripts must do identically, and plumbing: one module per concern.

Scripts call these modules; these modules never call a script. Launching a script by its path puts its folder
first on `sys.path`, under python, `accelerate launch` and torchrun alike, so nothing has to be installed.
"""
