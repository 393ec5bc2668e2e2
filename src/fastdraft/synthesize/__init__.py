"""Synthesis: the target completes prompts; its token ids and their log-probabilities become training data.

Prompts:
    prompts           windows of corpus documents; from prompts to requests
    prompt_sets       instruction data sets, chat messages under the chat template
    magpie            instructions that the target writes itself
    leaks             decontamination: prompts that occur in evaluation texts
    user_logs         a user's own prompts and answers

Engines, which run the target:
    engine_interface  what an engine implements, and what it returns
    engines           the table `ENGINES`, which opens an engine for a recipe
    engine_*          one engine each; `answer_parsing` and `server_responses` check what they return
    generate          batched decoding in this process, with `kv_cache` and `token_sampling`
    rescore           log-probabilities from a teacher-forced forward of the target

Completions:
    completions       Request, SamplingParams, Completion
    decoding_params   what is the same for all requests of a run: lengths, end-of-text ids, seed
    write             requests -> engine -> rescoring -> store, each request once
    completion_store  the parquet shards; `key_set` holds the keys of stored rows
    completion_file   completions in a temporary file, for random access by `training_sequences`
    quality           quality.json, with `repetition`; `completions_card` is the card of the stage
"""
