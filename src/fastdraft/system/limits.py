"""The largest whole numbers that a recipe or an option may give: at least ten times those of the paper.

Without them a slip, such as `sequence_tokens=1e8`, takes all memory or runs until somebody kills it.
"""

# Tokens of a corpus, documents, steps. The paper trains on 12.5 billion tokens.
TOTAL = 10**13
# Prompts of a synthesis; they are held in memory. The paper has some hundred thousand.
PROMPTS = 10**8
# Tokens of a sequence, a prompt, a completion. The paper's sequences have 2,048, long contexts of targets 131,072.
SEQUENCE = 2**17
# The context that a draft declares. No memory depends on it.
CONTEXT = 2**24
# Sequences of an optimizer step, prompts of a batch, tokens whose logits are in memory.
BATCH = 2**16
# Prompts of a measurement, and resamples of them: an interval holds the product of both in memory, 0.8 GB at most.
SAMPLE = 10**4
# Threads, processes, workers, concurrent requests.
PARALLEL = 4096
# Drafted tokens of a block.
GAMMA = 64
# Log-probabilities stored for a token.
TOP_LOGPROBS = 1024
# Sizes of a draft: its width and that of its MLP, its layers, its heads and their size. Those of the largest models.
WIDTH, LAYERS, HEADS = 2**18, 1000, 1024
# Parameters of a draft in millions.
PARAMETERS_MILLIONS = 10**6
# Anything else that is counted, such as tasks, attempts and gigabytes.
COUNT = 10**6
# numpy's and torch's generators take larger seeds. FastDraft adds small numbers to this one.
SEED = 2**32 - 1
