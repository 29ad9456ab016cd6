"""A frozen decoder: loading, hook points, splicing."""

from rayscope.model.language_model import LanguageModel, load

__all__ = ["LanguageModel", "load"]
