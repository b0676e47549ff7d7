"""Rows as a list."""


class Dataset:
    from_list = staticmethod(list)
