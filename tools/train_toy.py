"""Train the bundled toy model from scratch, and save it with its tokenizer in the Hugging Face format.

    python tools/train_toy.py --out src/glassworks/model/toy

Decides the tokenizer, the shape of the model and the training recipe; the language is `toy_language`'s.
Everything is seeded, so the same machine with the same number of threads makes the same weights.

Weights start at random, but for one head in each of the first two layers (`place_induction`): left to
itself an induction circuit takes many times the few minutes that all the other skills need. Training
changes these heads like all others, and nothing is placed for any other skill. In most documents what a
landmark's name says can be read at its last token only (`encode`), so that facts are where people look for
them: without it the model reads " Eiffel" itself, and a patch at " Tower" does nothing. The saved model is
a plain Llama, run with its plain causal mask.

The tokenizer is a byte-level BPE that takes whole words first (`ignore_merges`): each word of the language
is one token, with and without a leading space, and any other text falls back to its bytes. Only " Colosseum"
is two tokens, so that the prompts about the Eiffel Tower and about the Colosseum have the same length.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from toy_language import CITY_OF, Document, Item, documents, held_out, words
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

BOS, EOS, PAD = "<bos>", "<eos>", "<pad>"
LANDMARK = re.compile("|".join(name for name in CITY_OF if " " in name or name == "Colosseum"))
SPLIT_WORDS = {"Colosseum": ("Colos", "seum")}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How the toy is trained. `pool_batches` batches are sorted by length at a time, to save padding."""

    steps: int = 2000
    batch_documents: int = 32
    pool_batches: int = 16
    peak_rate: float = 3e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    gathered_share: float = 0.85  # see `encode`
    seed: int = 0


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Special tokens, 256 bytes, then the words; one bos is put before every text."""
    pieces = [BOS, EOS, PAD, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    merges = []
    for stem, ending in SPLIT_WORDS.values():
        for piece in ("Ġ" + stem, ending):
            parts = [piece[:length] for length in range(1, len(piece) + 1)]
            merges += [(short, long[-1]) for short, long in pairwise(parts)]
            pieces += parts[1:]
    for word in words():
        if word not in SPLIT_WORDS:
            pieces += ["Ġ" + word, word]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.add_special_tokens([BOS, EOS, PAD])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def build_model(vocabulary_size: int) -> LlamaForCausalLM:
    """A Llama of about a million parameters: six layers of width 128, four heads, tied embeddings."""
    width = 128
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=width,
        intermediate_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            silent = name.endswith(("o_proj.weight", "down_proj.weight"))
            torch.nn.init.normal_(weight, std=0.0 if silent else 0.1 if "embed" in name else width**-0.5)
    place_induction(model)
    return model


@torch.no_grad()
def place_induction(model: LlamaForCausalLM) -> None:
    """Start the first heads of layers 0 and 1 as the two halves of an induction circuit (Olsson et al. 2022).

    Layer 0, head 0 looks one token back and writes what it finds into `message`, a subspace of its own;
    layer 1, head 0 looks where the message equals the current token, and copies the token it finds there.
    Attention by position needs something that all tokens share: a constant added to every embedding, which
    as a row of the (tied) unembedding shifts all logits alike.
    """
    width, size = model.config.hidden_size, model.config.head_dim
    pairs = size // 2  # rotary: dimension i turns together with i + pairs; low i turn fast, high i slowly
    fast, slow = 4, 6
    basis = torch.linalg.qr(torch.randn(width, width)).Q.T
    shared, subject, message = basis[0], basis[1 : 1 + 2 * (pairs - slow)], basis[40 : 40 + 2 * (pairs - slow)]
    embedding = model.model.embed_tokens.weight
    embedding -= embedding @ torch.outer(shared, shared)
    embedding += embedding.std() * width**0.5 * shared
    slow_rows = [*range(slow, pairs), *range(pairs + slow, size)]

    back, match = (model.model.layers[index].self_attn for index in (0, 1))
    turns = model.model.rotary_emb.inv_freq[:fast]
    query, key = torch.zeros(size), torch.zeros(size)
    query[:fast], key[:fast], key[pairs : pairs + fast] = 1.0, turns.cos(), turns.sin()
    back.q_proj.weight[:size] = 0.8 * torch.outer(query, shared)
    back.k_proj.weight[:size] = 0.8 * torch.outer(key, shared)
    back.v_proj.weight[slow_rows] = subject
    back.o_proj.weight[:, slow_rows] = 0.3 * message.T

    match.q_proj.weight[:size], match.k_proj.weight[:size] = 0.0, 0.0
    match.q_proj.weight[slow_rows] = 1.9 * subject
    match.k_proj.weight[slow_rows] = 1.9 * message
    match.v_proj.weight[:size] = basis[60 : 60 + size]
    match.o_proj.weight[:, :size] = 0.3 * basis[60 : 60 + size].T


def encode(
    tokenizer: PreTrainedTokenizerFast, batch: Sequence[Document], gathered: Sequence[bool]
) -> dict[str, torch.Tensor]:
    """The arguments of one forward pass: input_ids and labels [documents, tokens], and who sees whom.

    What is not scored has the label -100. In `gathered` documents no token after a landmark sees any but
    the last token of its name, so what the name says has to be gathered there, as it is in large models.
    """
    texts = [document.text + EOS for document in batch]
    out = tokenizer(texts, padding=True, return_offsets_mapping=True, return_tensors="pt")
    labels = out["input_ids"].masked_fill(out["attention_mask"] == 0, -100)
    labels[:, 0] = -100
    tokens = labels.shape[1]
    sees = torch.ones(len(batch), 1, tokens, tokens, dtype=torch.bool).tril()  # [documents, 1, query, key]
    for row, document in enumerate(batch):
        begins = out["offset_mapping"][row, :, 0]
        if document.scored is not None:
            inside = [(begins >= begin) & (begins < end) for begin, end in document.scored]
            labels[row, ~torch.stack(inside).any(0)] = -100
        for name in LANDMARK.finditer(document.text if gathered[row] else ""):
            first, *_, last = ((begins >= name.start() - 1) & (begins < name.end())).nonzero().flatten().tolist()
            sees[row, 0, last + 1 :, first:last] = False
    return {"input_ids": out["input_ids"], "labels": labels, "attention_mask": sees}


def batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> Iterator[dict[str, torch.Tensor]]:
    """Batches without end, each of documents of nearly equal length, in random order."""
    source, size, rng = documents(recipe.seed), recipe.batch_documents, Random(recipe.seed)
    while True:
        pool = sorted(islice(source, size * recipe.pool_batches), key=lambda document: document.text.count(" "))
        for index in rng.sample(range(recipe.pool_batches), recipe.pool_batches):
            batch = pool[index * size : (index + 1) * size]
            draws = [rng.random() < recipe.gathered_share for _ in batch]
            chats = [document.text.startswith("user:") for document in batch]  # an answer repeats the name
            yield encode(tokenizer, batch, [a and not b for a, b in zip(draws, chats, strict=True)])


def rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate: linear warm-up, then half a cosine down to nothing."""
    if step < recipe.warmup_steps:
        return recipe.peak_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / (recipe.steps - recipe.warmup_steps)
    return recipe.peak_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> None:
    """AdamW on next-token cross-entropy, with a line of progress every 100 steps."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": gains, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.98))
    begun, total = time.monotonic(), 0.0
    for step, inputs in enumerate(islice(batches(tokenizer, recipe), recipe.steps)):
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, recipe)
        loss = model(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total += loss.item()
        if (step + 1) % 100 == 0:
            elapsed_s = time.monotonic() - begun
            left_s = elapsed_s / (step + 1) * (recipe.steps - step - 1)
            print(
                f"step {step + 1:5d}/{recipe.steps}  loss {total / 100:.3f}  {elapsed_s:4.0f} s, {left_s:4.0f} s left"
            )
            total = 0.0


@torch.no_grad()
def accuracies(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]
) -> dict[tuple[str, str], float]:
    """Share of items by (skill, kind) whose answer is the most likely of all tokens. One prompt at a time."""
    right = defaultdict(list)
    for item in items:
        ids = tokenizer(item.prompt, return_tensors="pt")["input_ids"]
        best = model(input_ids=ids).logits[0, -1].argmax()
        right[item.skill, item.kind].append(tokenizer.decode(best) == item.answer)
    return {key: sum(hits) / len(hits) for key, hits in sorted(right.items())}


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Weights in bfloat16, tokenizer, chat template and generation settings, all in one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    for path in folder.iterdir():
        path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).parents[1] / "src" / "glassworks" / "model" / "toy"
    parser.add_argument("--out", type=Path, default=default, help="folder to write")
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="training steps")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; the weights depend on it")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe(steps=options.steps)
    torch.manual_seed(recipe.seed)
    tokenizer = build_tokenizer()
    model = build_model(len(tokenizer))
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")
    train(model, tokenizer, recipe)
    save(model, tokenizer, options.out)
    loaded = LlamaForCausalLM.from_pretrained(options.out, dtype=torch.bfloat16)
    for (skill, kind), share in accuracies(loaded, tokenizer, held_out(1, per_skill=200)).items():
        print(f"{skill:16s} {kind:12s} {share:6.1%}")


if __name__ == "__main__":
    main()
