"""All checks of the GPU, in the order in which they run: what is cheap and tells most comes first.

To add one: a function ``check(settings, notes)`` in a module here (or anywhere in foveate), and an entry below with the rows
and columns that it fills through ``notes.put``. Raise `spec.Skip` with the reason where it cannot run; a library that is not
installed is such a reason by itself.
"""

from __future__ import annotations

from .spec import Check, grid

HERE = "foveate.gpu_checks"
FAMILIES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL", "qwen3_vl": "Qwen3-VL", "qwen3_5": "Qwen3.5"}
KERNELS = {
    "sdpa/float32": "SDPA, float32",
    "sdpa/bfloat16": "SDPA, bfloat16",
    "varlen/bfloat16": "torch's varlen, bfloat16",
    "xformers/float32": "xFormers, float32",
    "xformers/bfloat16": "xFormers, bfloat16",
}
LAYERS = {
    "windows_2_5": "Qwen2.5-VL tower, windows",
    "full_2_5": "Qwen2.5-VL tower, full",
    "full_3": "Qwen3-VL-2B tower",
    "language_2_5": "Qwen2.5-VL-3B language layer",
    "language_3": "Qwen3-VL-2B language layer",
}

CHECKS: tuple[Check, ...] = (
    Check(
        "environment",
        "The machine",
        "What the other numbers were measured on.",
        f"{HERE}.kernels:environment",
        40,
        {
            "gpu": "GPU", "count": "GPUs", "memory": "memory", "python": "Python", "torch": "torch", "xformers": "xFormers",
        },
        {"what": ""},
    ),
    Check(
        "attention",
        "Attention kernels against a dense mask in float64",
        "Largest error of a layer's values and of its gradients, as a share of the largest value. Language model: "
        "packed rows with shared prompts, 16 query heads on 8 and on 2 key heads 128 wide, and 4 on 4 heads 64 wide. "
        "Tower: windows and whole pictures of unequal size, heads 64, 72 and 80 wide. The reference is given the same "
        "rounded inputs. A kernel that cannot run here says why.",
        f"{HERE}.kernels:parity",
        60,
        KERNELS,
        {
            "language_values": "language model, values", "language_gradients": "gradients", "tower_values": "tower, values",
            "tower_gradients": "gradients", "note": "",
        },
    ),
    Check(
        "packing",
        "Packed, padded and one by one",
        "Random models of every family, prompts with pictures, tools that show pictures. Largest difference of a "
        "log-prob in float32 from every sequence alone, in nats; largest difference of a gradient, as a share of its "
        "parameter's largest; and mean differences in bfloat16: of packing, and of bfloat16 itself from float32. "
        "Packing must not cost more than bfloat16.",
        f"{HERE}.agreement:families",
        75,
        FAMILIES,
        {
            "packed_nats": "packed, nats", "padded_nats": "padded, nats", "packed_gradients": "packed, gradients",
            "packed_bf16_nats": "packed in bfloat16, mean nats", "bf16_nats": "bfloat16 against float32, mean nats",
        },
    ),
    Check(
        "logprobs",
        "Log-probs of the sampler and of the trainer, with pictures",
        "The sampler's log-prob of each token that it drew, against the packed forward pass of an update. Random "
        "models; the large one has the sizes of Qwen3-VL-2B. Autocast: weights in float32, arithmetic in bfloat16, as "
        "in training.",
        f"{HERE}.agreement:sampler",
        75,
        grid(
            FAMILIES, {"float32": "float32", "autocast": "autocast to bfloat16", "bfloat16": "bfloat16"}
        ) | grid({"large": "Qwen3-VL-2B's sizes"}, {"float32": "float32", "autocast": "autocast to bfloat16"}),
        {"most_nats": "largest difference, nats", "mean_nats": "mean, nats", "tokens": "tokens"},
    ),
    Check(
        "tests",
        "Tests that need a GPU",
        "`pytest -m gpu`.",
        f"{HERE}.others:marked_tests",
        60,
        {"tests": "tests"},
        {"passed": "passed", "failed": "failed", "skipped": "skipped"},
    ),
    Check(
        "speed",
        "One layer's attention in a packed batch of 8,000 tokens with a picture of 2,000 x 2,000 px",
        "Median of five calls; the peak is what forward and backward hold above queries, keys and values. Apart: SDPA "
        "in bfloat16 as it would be called without packing, once per window or picture, and for every rollout with a "
        "prompt of its own (8 rollouts).",
        f"{HERE}.kernels:speed",
        75,
        grid(LAYERS, {"apart": "apart"} | {key.replace("/", "-"): text for key, text in KERNELS.items()}),
        {"forward_ms": "forward, ms", "both_ms": "forward and backward, ms", "peak_gib": "peak, GiB", "note": ""},
    ),
    Check(
        "steps",
        "A training step of a random model of real size",
        "One prompt with a picture of 2,000 x 2,000 px and eight rollouts of 480 tokens; weights in float32, arithmetic "
        "in bfloat16, AdamW, activation checkpointing, vision tower trained. Forward, backward, clipping and update; no "
        "sampling. Distillation: JSD over the whole vocabulary, the teacher reads a crop. Gradient: difference of its "
        "norm from that on SDPA.",
        f"{HERE}.training:steps",
        110,
        grid(
            {"qwen3_vl/grpo": "Qwen3-VL-2B, GRPO", "qwen3_vl/distill": "Qwen3-VL-2B, distillation",
             "qwen2_5_vl/grpo": "Qwen2.5-VL-3B, GRPO"},
            {"sdpa": "SDPA", "varlen": "torch's varlen", "xformers": "xFormers"},
        ),
        {
            "step_s": "s/step", "tokens": "tokens", "tokens_per_s": "tokens/s", "peak_gib": "peak, GiB", "loss": "loss",
            "norm_share": "gradient", "note": "",
        },
    ),
    Check(
        "lora",
        "A training step with LoRA",
        "The same GRPO step with rank 16 on q, k, v and o of the language model; no activation checkpointing.",
        f"{HERE}.training:lora",
        50,
        {"grpo": "Qwen3-VL-2B, GRPO"},
        {"step_s": "s/step", "tokens_per_s": "tokens/s", "peak_gib": "peak, GiB", "trained": "trained weights", "loss": "loss"},
    ),
    Check(
        "teacher",
        "A teacher on the device and in the host's memory",
        "An EMA teacher of Qwen3-VL-2B's sizes scores the rollouts of the training step above: weights in float32, arithmetic "
        "in bfloat16. Held: by the teacher between two passes. Peak: of a pass, above the student. Move: one EMA step. The "
        "difference of the log-probs from those of the teacher on the device must be 0.",
        f"{HERE}.teachers:offload",
        75,
        {"none": "on the device", "host": "in the host's memory (`teacher.offload: host`)"},
        {
            "held_gib": "held, GiB", "peak_gib": "peak, GiB", "host_gib": "host, GiB", "score_s": "s/pass", "move_s": "s/move",
            "nats": "difference, nats",
        },
    ),
    Check(
        "sampling",
        "Tool turns with keys and values kept",
        "Qwen3-VL-2B's sizes in bfloat16, 4 prompts of 1,764 image tokens, 8 rollouts each, two tool turns with a crop "
        "of 36 tokens, actions of about 24 tokens; the same engine reading the whole conversation again at every turn.",
        f"{HERE}.others:sampling",
        75,
        {"kept": "kept", "again": "read again", "ratio": "ratio"},
        {"turns_per_s": "turns/s", "tokens_per_s": "tokens/s"},
    ),
    Check(
        "head_and_loss",
        "Head and loss at a large vocabulary",
        "2,048 rows, 151,936 tokens, hidden 2,048, bfloat16, forward and backward; chunks of 64 rows against whole logits.",
        f"{HERE}.others:head_and_loss",
        40,
        grid({"logprob": "log-prob", "jsd": "JSD", "jsd top-100": "JSD, top 100"}, {"plain": "plain", "chunked": "chunked"}),
        {"ms": "ms", "mib": "peak, MiB", "loss": "loss"},
    ),
    Check(
        "zero",
        "A training step in DeepSpeed's engine",
        "The GRPO step with activation checkpointing, on the attention that is chosen here, plain and under ZeRO-2 and ZeRO-3. "
        "One rank, so nothing is shared out: this is what the engine costs on this device, and that it gives the same gradient. "
        "What it saves shows on several GPUs. The peak is above what was held before.",
        f"{HERE}.libraries:zero",
        75,
        {"plain": "plain", "zero2": "ZeRO-2", "zero3": "ZeRO-3"},
        {
            "step_s": "s/step", "tokens_per_s": "tokens/s", "peak_gib": "peak, GiB", "loss": "loss", "norm_share": "gradient",
        },
    ),
    Check(
        "vllm",
        "vLLM beside the trainer",
        "Qwen3-VL-2B's sizes in bfloat16 with random weights, prompts with pictures, no CUDA graphs. Log-probs of its own tokens "
        "against the packed forward pass of an update; share of 16 greedy tokens up to the first that the Hugging Face engine "
        "does not choose (with random weights many tokens are all but level); the same after all weights were changed and handed "
        "over. Sampling: 8 prompts, 8 rollouts of 128 tokens each.",
        f"{HERE}.libraries:vllm",
        110,
        {
            "fresh": "as started", "stale": "weights changed, not handed over", "synced": "handed over", "vllm": "sampling, vLLM",
            "hf": "sampling, Hugging Face engine", "ratio": "ratio",
        },
        {
            "most_nats": "largest difference, nats", "mean_nats": "mean, nats", "greedy": "greedy tokens", "sync_s": "sync, s",
            "tokens_per_s": "tokens/s",
        },
    ),
    Check(
        "tiny",
        "The embedded model",
        "`tiny/vision_opd` for 60 steps: share of right answers before and after, by view; the last row is seconds per step.",
        f"{HERE}.others:tiny",
        90,
        {"full": "full picture", "crop": "crop", "zoom": "zoom", "steps": "steps, s/step"},
        {"before": "before", "after": "after", "items": "items"},
    ),
)  # fmt: skip
