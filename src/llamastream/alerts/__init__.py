"""Who is told when it is not well: rules over what happens, and receivers of their messages.

The rules are pure (`rules`, `measures`, `states`, `book`): readings and a clock in, messages out. `watchman` feeds them
in a thread of its own, and `delivery` takes messages to receivers, each in its own thread.
"""
