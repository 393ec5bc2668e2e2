# Read by rename.py: what holds for some files only.

NAMES.update(
    {
        "journey": "run_context",
        "_journey": "_run_context",
        "wish": "options",
        "say": "log_line",
        "Mend": "RepairKind",
        "mend": "kind",
        "mends": "repair_kinds",
        "mending": "repair_plan",
        "Beginning": "InitInputs",
        "beginning": "init_inputs",
    }
)
# Variables whose names say nothing, `told`, `said`, `ours`, `theirs`, mean something else in each function: by hand.
for word in ("told", "said", "_told", "_said", "coins", "_coins_RN", "coins_RN", "coins_BN", "coin", "ours", "theirs"):
    NAMES.pop(word, None)

FILES += [
    ("src/fastdraft/compatibility/engine_rules.py", {"ours": "of_target", "theirs": "of_draft"}),
    ("src/fastdraft/compatibility/strict_rules.py", {"ours": "of_target", "theirs": "of_draft"}),
    ("src/fastdraft/compatibility/*", {"judge": "check", "judged": "result"}),
    ("src/fastdraft/export/export_draft.py", {"judge": "check", "judged": "results"}),
    ("tests/compatibility/*", {"judge": "check", "judged": "results"}),
    ("src/fastdraft/bench/bench_pair.py", {"Wish": "BenchOptions"}),
    ("src/fastdraft/cli/bench.py", {"Wish": "BenchOptions"}),
    ("src/fastdraft/play/open_pair.py", {"Wish": "BenchOptions"}),
    ("tests/bench/*", {"Wish": "BenchOptions"}),
    ("benchmarks/*", {"Wish": "BenchOptions"}),
    ("src/fastdraft/export/export_draft.py", {"Wish": "ExportOptions"}),
    ("src/fastdraft/cli/export.py", {"Wish": "ExportOptions"}),
    ("tests/export/*", {"Wish": "ExportOptions"}),
    ("src/fastdraft/evaluate/*", {"Wish": "EvaluateOptions"}),
    ("src/fastdraft/cli/evaluate.py", {"Wish": "EvaluateOptions"}),
    ("src/fastdraft/cli/align.py", {"Wish": "EvaluateOptions"}),
    ("tests/cli/*", {"Wish": "EvaluateOptions"}),
    ("tests/evaluate/*", {"Wish": "EvaluateOptions"}),
    ("tests/pipeline/*", {"Wish": "EvaluateOptions"}),
    ("benchmarks/evaluation.py", {"Wish": "EvaluateOptions"}),
    # Distributions, not parameters of sampling.
    (
        "src/fastdraft/train/divergence_kernels.py",
        {"_Laws": "_Distributions", "_laws": "_distributions", "laws": "distributions"},
    ),
    (
        "src/fastdraft/train/attention.py",
        {"_law": "_attention_weights", "law_GCK": "weights_GCK", "by_law_GCK": "by_weights_GCK"},
    ),
    (
        "src/fastdraft/train/objectives.py",
        {"_law": "_teacher", "of_law": "distribution_weights", "law": "target_logits"},
    ),
    ("src/fastdraft/play/engine_transformers.py", {"laws": "draft_probs", "_judged": "_verified"}),
    ("src/fastdraft/train/loop.py", {"_judged": "_after_validation", "judged": "after_validation"}),
    ("src/fastdraft/train/early_stopping.py", {"judged": "after_validation"}),
    ("tests/train/*", {"judged": "after_validation"}),
    ("src/fastdraft/data/*", {"judged": "decided"}),
    ("src/fastdraft/evaluate/assisted.py", {"_law": "_sampling"}),
    ("src/fastdraft/synthesize/*", {"_law": "_sampling"}),
    ("src/fastdraft/pipeline/synthesize.py", {"_law": "_sampling"}),
    # The parameters of sampling as text.
    ("src/fastdraft/report/*", {"law": "sampling_text", "_law": "_sampling_text"}),
    ("src/fastdraft/export/model_card*.py", {"law": "sampling_text"}),
    ("src/fastdraft/report/formatting.py", {"share": "share"}),
    ("src/fastdraft/play/page.py", {"share": "share"}),
    ("src/fastdraft/models/shape/*", {"beginning": "base_config"}),
    ("benchmarks/alignment.py", {"beginning": "beginning"}),
    ("src/fastdraft/config/models.py", {"start": "init"}),
    ("src/fastdraft/init/first_weights.py", {"start": "init"}),
    ("src/fastdraft/pipeline/pilots.py", {"start": "init"}),
    ("tests/init/*", {"start": "init"}),
    ("src/fastdraft/config/*", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/planning/plan.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/pipeline/target.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/pipeline/synthesize.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/pipeline/validation.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/evaluate/run_prompts.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/synthesize/engines.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/synthesize/prompts.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/bench/bench_pair.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("benchmarks/synthesis.py", {"prompt_tokens": "max_prompt_tokens"}),
    ("src/fastdraft/pipeline/stages.py", {"road": "stages_of"}),
]

PY, ALL = "*.py", "*"
TEXT += [
    ("src/fastdraft/evaluate/score.py", r"import verification as judges", "import verification"),
    # options
    (ALL, r"--judge(?![\w])", "--verify"),
    (ALL, r"--judge-", "--verify-"),
    (ALL, r"--completion-tokens", "--max-new-tokens"),
    (ALL, r"--batch-prompts", "--batch-size"),
    (ALL, r"--share(?![\w])", "--fraction"),
    # recipe keys
    (ALL, r"\bdraft\.start\b", "draft.init"),
    ("recipes/*.yaml", r"^(  )start:", r"\1init:"),
    ("docs/*", r"^(\s+)start:", r"\1init:"),
    ("docs/*", r"\bstart: (?=random|target_embedding|prune|transplant)", "init: "),
    ("tests/*", r"([\"'])start\1(: )", r"\1init\1\2"),
    ("tests/*", r"([\"'])start\1(?=\])", r"\1init\1"),
    ("tests/*", r"start: random", "init: random"),
    ("tests/*", r"DraftPart\(start=", "DraftPart(init="),
    ("src/fastdraft/*", r"([\"'])start\1(: f?\"prune)", r"\1init\1\2"),
    ("src/fastdraft/config/yaml_syntax.py", r"\"start\"", '"init"'),
    ("src/fastdraft/config/models.py", r"field_validator\(\"start\"\)", 'field_validator("init")'),
    ("src/fastdraft/config/models.py", r"MODEL of `start`", "MODEL of `init`"),
    ("src/fastdraft/config/models.py", r"\{start\}", "{init}"),
    ("src/fastdraft/init/first_weights.py", r"\{\"start\": ", '{"init": '),
    ("src/fastdraft/init/layer_pruning.py", r"Bar\(\"start\"", 'Bar("init"'),
    ("src/fastdraft/init/layer_pruning.py", r"f\"start: without", 'f"init: without'),
    ("src/fastdraft/pipeline/pilots.py", r"include=\{\"start\"", 'include={"init"'),
    ("src/fastdraft/pipeline/pilots.py", r"\bpart\.start\b", "part.init"),
    ("*", r"\b(evaluate|synthesize|\{name\})\.prompt_tokens\b", r"\1.max_prompt_tokens"),
    ("recipes/*", r"^(\s+)prompt_tokens:", r"\1max_prompt_tokens:"),
    ("docs/*", r"`prompt_tokens`", "`max_prompt_tokens`"),
    ("src/*", r"`prompt_tokens`", "`max_prompt_tokens`"),
    ("src/fastdraft/pipeline/*", r"\"prompt_tokens\"", '"max_prompt_tokens"'),
    ("tests/*", r"\"prompt_tokens\"", '"max_prompt_tokens"'),
    # values
    (ALL, r"\b(target_law\W{1,6}(?:is )?)live\b", r"\1online"),
    (ALL, r"\b(target_law\W{1,6}(?:is )?)stored\b", r"\1offline"),
    (ALL, r"(target_law, \w+\.top_logprobs\) == \(\")stored", r"\1offline"),
    (
        "src/fastdraft/config/training.py",
        r"Literal\[\"live\", \"stored\"\] = Field\(\s*\"live\"",
        'Literal["online", "offline"] = Field(\n        "online"',
    ),
    (ALL, r"\btemperature: rows\b", "temperature: per_sequence"),
    (ALL, r"\btemperature=rows\b", "temperature=per_sequence"),
    (ALL, r"\btemperature=\"rows\"", 'temperature="per_sequence"'),
    ("*.py", r"temperature == \"rows\"", 'temperature == "per_sequence"'),
    ("tests/train/*", r"\[1\.0, 0\.7, \"rows\"\]", '[1.0, 0.7, "per_sequence"]'),
    ("src/fastdraft/config/training.py", r"Literal\[\"rows\"\]", 'Literal["per_sequence"]'),
    ("src/fastdraft/config/training.py", r"found != \"rows\"", 'found != "per_sequence"'),
    ("src/fastdraft/config/training.py", r"above 0, or rows", "above 0, or per_sequence"),
    ("src/fastdraft/config/training.py", r"`rows`: that of each row of", "`per_sequence`: that of each sequence of"),
    # log-probabilities as an engine gives them: vLLM's processed_logprobs and raw_logprobs
    ("src/fastdraft/synthesize/*.py", r"\"law\"", '"processed"'),
    ("tests/synthesize/*.py", r"rescorer\(\"law\"", 'rescorer("processed"'),
    ("tests/*", r"logp(:\s*\w+)? = \"law\"", r'logp\1 = "processed"'),
    ("docs/*", r"logp(:\s*\w+)? = \"law\"", r'logp\1 = "processed"'),
    # JSON keys and the names of columns
    ("*.py", r"\"judged\"", '"verified"'),
    ("src/fastdraft/report/page.py", r"\"law\": law\b", '"sampling_text": law'),
    ("src/fastdraft/report/templates/*", r"\blaw\(", "sampling_text("),
    ("src/fastdraft/report/templates/*", r"\.law\b", ".sampling_text"),
    ("src/fastdraft/report/templates/*", r"<th>law</th>", "<th>sampling</th>"),
    ("src/fastdraft/report/templates/*", r"\bjudged\b", "verified"),
    ("src/fastdraft/report/terminal_*.py", r"\"law\"", '"sampling"'),
    ("src/fastdraft/export/model_card*.py", r"\"law\"", '"sampling"'),
    ("src/fastdraft/evaluate/score.py", r"Bar\(\"judge\"", 'Bar("verify"'),
    ("src/fastdraft/report/terminal_run.py", r"The judge: real", "Verification: real"),
]
# UNIQUE words that stay in some files: keys of other people's formats.
KEEP = [
    ("tests/synthesize/serving.py", {"completion_tokens"}),
    ("src/fastdraft/synthesize/engine_server.py", set()),
]
PROSE += [
    (r"\bthe judge's\b", "the verification's"),
    (r"\b([Tt])he judge\b", r"\1he verification"),
    (r"\bas judge\b", "as verification"),
    (r"\bits judge\b", "its verification"),
    (r"\bsampling law\b", "sampling distribution"),
    (r"\bthe target's law\b", "the target's distribution"),
    (r"\bthe law of\b", "the distribution of"),
    (r"\bof one law\b", "of one distribution"),
    (r"\btwo laws\b", "two distributions"),
    (r"\bboth laws\b", "both distributions"),
    (r"\bBoth laws\b", "Both distributions"),
    (r"\bTwo laws\b", "Two distributions"),
    (r"\blive law\b", "online distribution"),
    (r"\bstored law\b", "offline distribution"),
    (r"\bdown the road\b", "through the pipeline"),
    (r"\bthe whole road\b", "the whole pipeline"),
    (r"\b([Tt])he road\b", r"\1he pipeline"),
    (r"\btiny road\b", "tiny pipeline"),
    (r"\bis not on the pipeline\b", "is not in the pipeline"),
    (r"\blaws\b", "distributions"),
    (r"\blaw\b", "distribution"),
    (r"\bLaws\b", "Distributions"),
]
# Files of which the name is a private word.
MOVES = [
    ("docs/road.md", "docs/pipeline.md"),
]
TEXT += [
    (ALL, r"\broad\.md\b", "pipeline.md"),
    ("mkdocs.yml", r"The road: ", "The pipeline: "),
]

TEXT += [
    ("src/*", r"\"start\.json\"", '"init.json"'),
    ("tests/*", r"\"start\.json\"", '"init.json"'),
    ("tests/*", r"\bstart: (?=random|target_embedding|prune|transplant|without)", "init: "),
    ("benchmarks/*", r"\bstart: (?=random|target_embedding|prune|transplant)", "init: "),
    ("benchmarks/*", r"([\"'])start\1(: )", r"\1init\1\2"),
    ("benchmarks/*", r"\"prompt_tokens\"", '"max_prompt_tokens"'),
]

TEXT += [
    (
        "tests/system/test_files.py",
        r'other = ("import sys; [^\n]*?import locked\\n)(with [^\n]*")',
        r'other = (\n        \1"\n        "\2\n    )',
    ),
]

TEXT += [
    ("src/fastdraft/demo/draft/recipe.yaml", r"^(  )start:", r"\1init:"),
    ("src/fastdraft/demo/draft/recipe.yaml", r"^(\s+)prompt_tokens:", r"\1max_prompt_tokens:"),
    ("src/fastdraft/demo/draft/card.json", r"\"version\": 1,", '"version": 2,'),
    ("src/fastdraft/system/cards.py", r"^VERSION = 1$", "VERSION = 2"),
    # Keys that came later, and those that were taken for something: nobody has a run of before.
    ("src/fastdraft/pipeline/stages.py", r"(?:^#[^\n]*\n)+^CAME_LATER: (?:.|\n)*?^\}\n", ""),
    ("src/fastdraft/pipeline/stages.py", r"(?:^#[^\n]*\n)+^TAKEN_FOR: [^\n]*\n", ""),
    (
        "src/fastdraft/pipeline/stages.py",
        r"    later = CAME_LATER\.get(?:.|\n)*?value != later\[key\]\}\n",
        '    return part.model_dump(mode="json", exclude=WITHOUT_EFFECT)\n',
    ),
]

TEXT += [
    # It has no effect on the result; TAKEN_FOR said so until now.
    (
        "src/fastdraft/pipeline/stages.py",
        r'\*\("activation_checkpointing", (?!"micro_batch_size")',
        '*("activation_checkpointing", "micro_batch_size", ',
    ),
    (
        "src/fastdraft/demo/model_card.py",
        r"from fastdraft\.synthesize\.completions import",
        "from fastdraft.synthesize.completions import",
    ),
]

TEXT += [(ALL, r"\{start: (?=[\"']?(?:random|target_embedding|prune|transplant))", "{init: ")]

TEXT += [
    (ALL, r"\bjudge more prompts", "verify more prompts"),
    (ALL, r"\bto judge them\b", "to verify them"),
    (ALL, r"\bleft to judge\b", "left to verify"),
    (ALL, r"judged by the target", "verified by the target"),
    ("src/fastdraft/report/page.py", r"\"road\":", '"stage_names":'),
    ("src/fastdraft/report/templates/*", r" in road\b", " in stage_names"),
    ("src/fastdraft/report/templates/*", r"task and law\b", "task and temperature"),
    ("src/fastdraft/report/templates/*", r"Task and law\b", "Task and temperature"),
    ("tests/*", r"Task and law\b", "Task and temperature"),
    ("src/fastdraft/cli/choices.py", r"road\.usable_device", "pipeline.usable_device"),
]
PROSE[:0] = [
    (r"\b([Tt])he whole road\b", r"\1he whole pipeline"),
    (r"down the recipe's road\b", "through the recipe's pipeline"),
    (r"\bmay judge a draft\b", "may measure a draft"),
    (r"\bto judge a draft by\b", "to measure a draft on"),
    (r"\bbe judged on\b", "be measured on"),
    (r"\bare judged under\b", "are compared under"),
]
TEXT += [
    (
        "src/fastdraft/demo/*",
        r"bf16, so that the whole road to a\n",
        "bf16, so that the whole pipeline\nto a ",
    ),
]
PROSE += [
    (r"\b[Ll]ikeliest\b", "most likely"),
    (r"\bmend\b", "fix"),
    (r"\bmends\b", "fixes"),
    (r"\bmended\b", "fixed"),
    (r"\bheeded\b", "used"),
]
TEXT += [("docs/*", r"`law`(?=,? under the law|, )", "`processed`")]
