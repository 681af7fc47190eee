"""How a chat model meets what it should refuse, and what defences at the level of decoding change. Defensive only.

Requests, templates and prefixes are the user's: none is shipped here, and none is made or improved.
"""
