"""A tokenizer small enough for 97 ids: letters, a few merges, and a start token that its chat template writes too."""

from functools import cache

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyz", *"CELPRT", "Ġ", ",", ".", ":"]
MERGES = [
    ("Ġ", "i"), ("Ġi", "n"), ("Ġi", "s"), ("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("Ġ", "o"), ("Ġo", "f"),
    ("Ġ", "P"), ("a", "r"), ("i", "s"), ("ĠP", "ar"), ("ĠPar", "is"), ("Ġ", "R"), ("o", "m"), ("ĠR", "om"),
    ("ĠRom", "e"), ("Ġ", "c"), ("i", "t"), ("it", "y"), ("Ġc", "ity"),
]  # fmt: skip
CHAT = "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{% endfor %}"


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """` Paris`, ` Rome`, ` is`, ` in`, ` the`, ` of` and ` city` are one token each; ` London` is many."""
    vocab = {text: n for n, text in enumerate([*SPECIAL, *LETTERS, *(a + b for a, b in MERGES)])}
    own = Tokenizer(models.BPE(vocab=vocab, merges=MERGES, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    own.decoder = decoders.ByteLevel()
    own.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    own.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=own, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    made.chat_template = CHAT
    return made
