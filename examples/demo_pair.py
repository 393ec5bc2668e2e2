"""From a target's name to a draft that is measured, timed and exported, in Python, in minutes.

    python examples/demo_pair.py [FOLDER]

Each `# %%` begins a cell for editors that run scripts as notebooks. The target is the packaged one, `demo`. Its recipe
is cut to a hundredth of its tokens, so few tokens of this draft are accepted: `fastdraft run recipes/demo.yaml` makes a
useful one.
"""

# %% What a draft for this target would look like, what it would cost, and whether it would pay on this machine.
import json
import sys
from pathlib import Path

import fastdraft
from fastdraft.results.evaluation import EvaluationCard

FOLDER = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example")
RECIPE = Path(__file__).parents[1] / "recipes" / "demo.yaml"

plan = fastdraft.plan("demo")
for candidate in plan.drafts:
    print(candidate.layers, candidate.hidden_size, f"{candidate.parameters:,}")

# %% The recipe, with far fewer documents, tokens and prompts.
recipe = fastdraft.load_recipe(
    RECIPE,
    [
        *("corpus.code.max_documents=2000", "corpus.text.max_documents=2000"),
        *("pretrain.train_tokens=8000", "continue.train_tokens=8000", "align.train_tokens=15000"),
        *("synthesize.prompts=64", "synthesize.max_new_tokens=32", "evaluate.prompts=8", "evaluate.max_new_tokens=32"),
        *("evaluate.validation_prompts=0", "evaluate.verify_prompts=2", "evaluate.temperatures=[0.0]"),
    ],
)

# %% Every stage, from the target to the evaluation. Stages that are done are skipped when this cell runs again.
cards = fastdraft.run(recipe, folder=FOLDER / "run")
evaluation = cards["evaluate"]
assert isinstance(evaluation, EvaluationCard)
for result in evaluation.results:
    print(f"{result.stage:10} {result.task:6} acceptance rate {result.alpha.value:.3f}")

# %% Does the draft fit its target in every engine?
draft = FOLDER / "run" / "align" / "model"
report = fastdraft.check("demo", str(draft))
print("fits" if report.holds else "does not fit")

# %% The draft and the packaged one, on the same completions of your own prompts.
prompts = FOLDER / "prompts.jsonl"
prompts.write_text("".join(json.dumps({"prompt": f"def {name}("}) + "\n" for name in ("read", "write", "sort", "main")))
scores = fastdraft.evaluate(
    draft,
    target="demo",
    compare="demo",
    tasks=[str(prompts)],
    temperatures=[0.0],
    max_new_tokens=32,
    keep=FOLDER / "kept",
)
for result in scores.results:
    best = max(result.gammas, key=lambda at: at.block_efficiency.value)
    print(f"{result.stage}: {best.block_efficiency.value:.2f} tokens per target forward at gamma {best.gamma}")

# %% Timed in transformers, against decoding without a draft and with prompt lookup.
timing = fastdraft.bench(
    "demo",
    "demo",
    engine="transformers",
    tasks=[str(prompts)],
    temperatures=[0.0],
    gammas=[3],
    prompts=2,
    tokens=16,
    repeats=1,
)
print(timing.advice)

# %% Aligned to your own prompts, and measured before and after.
aligned = fastdraft.align(
    draft, "demo", prompts, folder=FOLDER / "aligned", held_out_fraction=0.5, max_new_tokens=32, temperatures=[0.0]
)
for result in aligned.results:
    print(f"{result.stage}: acceptance rate {result.alpha.value:.3f}")

# %% Written for an engine, and proved there.
folder, card = fastdraft.export(draft, "huggingface", target="demo", out=FOLDER / "exported")
print(folder, card.format)
