"""What is learned: tasks as data, where they come from, how answers are scored, and how batches are drawn.

`__init__.pyi` lists the public names. They are imported on first use: only the draws (`promptprior.tasks.sampling`)
need torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
