"""FastDraft: a draft model for speculative decoding, for any target."""

from importlib.metadata import version

__version__ = version("fastdraft")
