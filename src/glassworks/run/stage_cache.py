"""The keys and values of one pipeline stage, in transformers' own cache."""

from typing import Any


def stage_cache(module: Any, first_layer: int, *, encoder_decoder: bool) -> Any:
    """A cache that answers for a stage which begins at `first_layer`.

    transformers asks layer 0 how many tokens are cached; a stage that has no layer 0 must be asked about its first.
    """
    from transformers.cache_utils import DynamicCache, EncoderDecoderCache

    class StageCache(DynamicCache):  # type: ignore[misc]
        def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> int:
            return int(super().get_seq_length(max(layer_idx, first_layer), *args, **kwargs))

        def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> Any:
            return super().get_mask_sizes(query_length, max(layer_idx, first_layer))

    config = module.config.get_text_config(decoder=True)
    own = StageCache(config=config)
    return EncoderDecoderCache(own, StageCache(config=config)) if encoder_decoder else own
