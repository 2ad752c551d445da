"""Keys of ``node.meta`` in a canonical graph, in addition to torch's ``nn_module_stack`` and ``stack_trace``."""

WORD = "cpupack_word"
"""What a call does, in a word: ``conv2d``, ``add``."""
NAME = "cpupack_name"
"""The call's name for people: the user's module, or the module that makes the call and the word."""
CONSTANT_NAME = "cpupack_constant"
"""The user's name of the parameter or buffer that a ``get_attr`` reads."""
