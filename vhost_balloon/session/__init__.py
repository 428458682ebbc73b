"""What each vhost-user message means: one connection's state, and the effects that follow.

Pure. front_end/ carries the effects out.
"""
