"""What ships inside every wheel, as it is: ordinary modules that never import the rest of cpupack.

``runner`` is the model for Python, ``cli`` the command line, ``info`` and ``verify`` its two commands that need no room
of their own. The rooms: ``host`` describes the machine, ``images`` makes the model's input, ``engine`` loads and runs
the model, ``plan`` decides how to run it, ``bench`` measures it, ``tune`` searches the best setting, ``capacity`` says
which load a host carries, ``pages`` draws results. ``manifest`` has the package's facts, ``files`` its file names,
``plain`` makes results ready for JSON.
"""
