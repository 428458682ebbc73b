"""What each vhost-user message means: one connection's state, replies and effects. Pure.

front_end/ receives the messages and carries the effects out.
"""
