"""The name that somebody probably meant: by meaning (other projects' words for the same thing) as well as by
spelling.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from lowrise.errors import UsageError

# Key or command -> what transformers, nanoGPT, litgpt, torchtitan and papers call it.
_OTHER_WORDS = {
    "optimizer.lr": "learning_rate max_lr peak_lr base_lr",
    "optimizer.name": "optim optimizer",
    "optimizer.betas": "adam_betas beta1 beta2 adam_beta1 adam_beta2",
    "optimizer.eps": "epsilon adam_epsilon",
    "optimizer.weight_decay": "wd decay_weight",
    "schedule.name": "lr_scheduler lr_scheduler_type scheduler lr_schedule decay_type",
    "schedule.warmup": "warmup_steps warmup_iters warmup_ratio num_warmup_steps",
    "schedule.min_lr_ratio": "min_lr final_lr lr_min end_lr",
    "layer.rank": "r lora_r lora_rank low_rank",
    "layer.targets": "target_modules modules",
    "model.preset": "model_name size model_size config_name",
    "model.hidden_size": "d_model n_embd dim embed_dim width emb_dim",
    "model.intermediate_size": "ffn_dim d_ff mlp_dim ffn_hidden_size",
    "model.num_layers": "n_layer n_layers num_hidden_layers depth",
    "model.num_heads": "n_head n_heads num_attention_heads",
    "model.num_kv_heads": "num_key_value_heads n_kv_heads num_query_groups",
    "model.tie_embeddings": "tie_word_embeddings weight_tying",
    "data.source": "dataset datasets train_data train_file train_files corpus data_path input",
    "data.valid": "validation valid_data validation_file eval_dataset val_data",
    "data.tokenizer": "tokenizer_path tokenizer_name",
    "train.steps": "max_steps num_steps n_steps iterations max_iters total_steps num_train_steps updates",
    "train.global_batch_size": "batch_size bs batch sequences train_batch_size",
    "train.micro_batch_size": "per_device_train_batch_size device_batch_size gradient_accumulation_steps",
    "train.seq_len": "sequence_length block_size context_length max_length max_seq_length seq_length ctx_len",
    "train.grad_clip": "max_grad_norm clip clip_norm gradient_clipping clip_grad max_norm",
    "train.device": "gpu cuda accelerator",
    "train.precision": "dtype bf16 fp16 mixed_precision amp autocast",
    "train.compile": "torch_compile",
    "train.threads": "num_threads omp_num_threads",
    "parallel.data": "fsdp ddp strategy sharding parallelism",
    "eval.every": "eval_steps eval_interval eval_every val_every evalsteps",
    "eval.batch_size": "eval_batch_size per_device_eval_batch_size",
    "checkpoint.every": "save_steps save_interval save_every checkpoint_interval checkpoint_every",
    "checkpoint.keep": "save_total_limit keep_last max_checkpoints",
    "log.every": "logging_steps log_interval log_every",
    "seed": "random_seed manual_seed",
    "run": "output_dir out_dir output save_dir run_dir out",
    "out": "output_dir out_dir output run_dir dir",
    "tokens": "max_new_tokens max_tokens num_tokens length n",
    "prompt": "text input",
    "set": "override overrides",
    "seeds": "num_seeds n_seeds",
    "workers": "num_workers jobs n_jobs processes",
    "source": "dataset datasets input corpus data_path",
    "train": "fit pretrain resume continue run finetune",
    "eval": "evaluate test validate score",
    "generate": "sample infer inference complete chat predict",
    "export": "convert to_hf save_hf merge",
    "data": "tokenize preprocess dataset prepare",
    "compare": "benchmark ablate versus",
    "sweep": "tune grid search hyperopt optuna hparams gridsearch",
    "vary": "params param grid space key values",
    "search": "method sampler algorithm strategy",
    "chat": "apply_chat_template chat_template",
    "trials": "n_trials num_trials count runs",
    "scaling": "isoflop isoflops chinchilla laws scaling_law scaling_laws",
    "budgets": "budget flops compute",
    "sizes": "num_sizes n_sizes models",
    "methods": "list models optimizers layers",
    "serve": "server api host",
    "inspect": "audit ranks spectra spectrum svd",
}


def _squashed(word: str) -> str:
    return word.lower().replace("_", "").replace("-", "").replace(".", "")


_MEANINGS: dict[str, list[str]] = {}
for _key, _words in _OTHER_WORDS.items():
    for _word in _words.split():
        _MEANINGS.setdefault(_squashed(_word), []).append(_key)


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name, dotted or plain, that `name` most likely stands for; None where nothing is near."""
    known = list(known)
    section, _, last = name.lower().replace("-", "_").rpartition(".")
    prefix = f"{section}." if section else ""
    here = {key.removeprefix(prefix): key for key in known if key.startswith(prefix)}
    meant = _MEANINGS.get(_squashed(name), []) + _MEANINGS.get(_squashed(last), [])
    same_section = [here[key.rpartition(".")[2]] for key in meant if key.rpartition(".")[2] in here]
    elsewhere = [key for key in known if key.rpartition(".")[2] == last]
    spelled = difflib.get_close_matches(last, here, n=1, cutoff=0.75)
    roughly = difflib.get_close_matches(last, here, n=1, cutoff=0.5)
    candidates = [
        *(same_section if section else (key for key in meant if key in known)),
        *(here[word] for word in spelled),
        *(key for key in meant if key in known),
        *elsewhere,
        *(here[word] for word in roughly),
        *difflib.get_close_matches(name, known, n=1, cutoff=0.6),
        *(key for key in _near_meanings(last) if key in known),
    ]
    return candidates[0] if candidates else None


def _near_meanings(word: str) -> list[str]:
    """What a misspelt word of another project stands for."""
    near = difflib.get_close_matches(_squashed(word), _MEANINGS, n=1, cutoff=0.85)
    return _MEANINGS[near[0]] if near else []


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name; empty where nothing is near."""
    found = nearest_name(name, known)
    return f"; the nearest is {found!r}" if found else ""


def lookup(table: Mapping[str, Any], name: Any, kind: str, source: str) -> Any:
    """`table[name]`, or a sentence with the nearest name and all of them."""
    if name not in table:
        raise UsageError(
            f"{source}: there is no {kind} {name!r}{nearest(str(name), table)}. "
            f"Known: {', '.join(sorted(table))}."
        )
    return table[name]
