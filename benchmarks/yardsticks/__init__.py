"""Pages of results: every config of a kind trained on one data set with several seeds.

A yardstick is three files of one name: ``<name>.py`` says what is trained, shown and claimed,
``<name>.csv`` has a line a run, ``<name>.md`` what the figures do not say by themselves. From these
and the configs' titles alone the page and its picture are made. A further yardstick is three more
files and an entry in ``YARDSTICKS`` of ``__main__.py``.
"""
