"""The fast engine: the training of ``loop.py``, held equal to it by tests, near what the hardware can do. A newcomer
may skip this folder; nothing here changes what is trained, and the loop never imports it."""
