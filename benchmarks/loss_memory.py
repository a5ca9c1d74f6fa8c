"""Time and memory of head and loss, from hidden states to gradients: chunked (`train.losses.head_loss`) against whole logits.

    python benchmarks/loss_memory.py                  V 151,936, T 2,048, hidden 448 (some 15 GB are needed for the plain way)
    python benchmarks/loss_memory.py --small          a few seconds
    python benchmarks/loss_memory.py --device cuda --dtype bfloat16 --hidden 2560

Every variant runs in a process of its own, interleaved, best time of ``--repeats``; on one CPU thread it is processor time, which
others on the machine change less than the clock on the wall. Memory is what the peak (VmHWM, or CUDA's
allocated bytes) adds to what is there before the step: weights and hidden states; the gradients are included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
LOSSES = ("logprob", "jsd", "jsd top-100")


def memory_mb(device: torch.device, field: str) -> float:
    """``VmRSS`` (now) or ``VmHWM`` (peak) of this process, or their like on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() if field == "VmHWM" else torch.cuda.memory_allocated()) / 2**20
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def plain_loss(
    loss: str, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor, teacher_head: torch.Tensor
) -> torch.Tensor:
    """The loss as one writes it: whole logits, log_softmax, autograd."""
    from foveate.train.divergence import top_support

    student = (hidden @ head.t()).float().log_softmax(-1)
    if loss == "logprob":
        return -student.gather(1, targets[:, None]).mean()
    with torch.no_grad():
        other = (teacher @ teacher_head.t()).float().log_softmax(-1)
    if loss == "jsd top-100":
        _, student, other = top_support(student, other, 100)
    mean = torch.logaddexp(student, other) - 0.6931471805599453
    left = (student.exp() * (student - mean)).sum(-1)
    right = (other.exp() * (other - mean)).sum(-1)
    return (0.5 * left + 0.5 * right).mean()


def measure(args: argparse.Namespace) -> dict[str, float]:
    """One variant, in this process."""
    from foveate.train.losses import KDRows, RowLoss, head_loss

    device, dtype = torch.device(args.device), {"float32": torch.float32, "bfloat16": torch.bfloat16}[args.dtype]
    g = torch.Generator(device).manual_seed(0)

    def normal(rows: int, scale: float) -> torch.Tensor:
        return torch.randn(rows, args.hidden, generator=g, device=device).mul_(scale).to(dtype)

    hidden, teacher = normal(args.rows, 1.0), normal(args.rows, 1.0).mul_(0.3)
    teacher.add_(hidden)
    head = normal(args.vocab, 2.0 / args.hidden**0.5)
    teacher_head = head.detach()
    targets = torch.randint(args.vocab, (args.rows,), generator=g, device=device)
    weights = torch.full((args.rows,), 1 / args.rows, device=device)
    hidden.requires_grad_()
    head.requires_grad_()

    def step(rows: int) -> torch.Tensor:
        hidden.grad = head.grad = None
        h, t = hidden[:rows], teacher[:rows]
        if args.variant == "plain":
            loss = plain_loss(args.loss, h, head, targets[:rows], t, teacher_head)
        elif args.loss == "logprob":
            loss, _ = head_loss(h, head, RowLoss(targets[:rows], weights[:rows]), chunk=args.chunk)
        else:
            kd = KDRows(t, teacher_head, weights[:rows], support="top" if "top" in args.loss else "full", top_c=100)
            loss, _ = head_loss(h, head, RowLoss(targets[:rows], kd=[kd]), chunk=args.chunk)
        loss.backward()
        return loss.detach()

    step(2)  # warm: threads, kernels
    hidden.grad = head.grad = None
    before = memory_mb(device, "VmRSS")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts here, not at the warm-up
    clock = time.process_time if device.type == "cpu" and args.threads == 1 else time.perf_counter
    start = clock()
    loss = step(args.rows)
    peak = memory_mb(device, "VmHWM")  # synchronizes
    seconds = clock() - start
    assert head.grad is not None
    return {"ms": seconds * 1e3, "mb": peak - before, "loss": float(loss), "grad": float(head.grad.float().norm())}


def run_apart(args: argparse.Namespace, loss: str, variant: str) -> dict[str, float]:
    """`measure` in a new process."""
    options = ("rows", "vocab", "hidden", "chunk", "device", "dtype", "threads")
    words = [word for name in options for word in (f"--{name}", str(vars(args)[name]))]
    done = subprocess.run(
        [sys.executable, __file__, *words, "--loss", loss, "--variant", variant], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{loss}, {variant}: {done.stderr.strip()[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def missing_mb(args: argparse.Namespace, loss: str) -> float:
    """What the plain way lacks: it holds 3 (log-prob) to 12 (JSD) tensors of rows x vocabulary at once."""
    need = (4 if loss == "logprob" else 13) * args.rows * args.vocab * 4 / 2**20 + 3000
    if args.device == "cuda":
        return float(need - torch.cuda.mem_get_info()[0] / 2**20)
    free = next(
        line for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if line.startswith("MemAvailable")
    )
    return float(need - int(free.split()[1]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=448)
    parser.add_argument("--chunk", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--small", action="store_true", help="256 rows, vocabulary 20,000, hidden 64")
    parser.add_argument("--loss", choices=LOSSES, help=argparse.SUPPRESS)
    parser.add_argument("--variant", choices=["plain", "chunked"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.small:
        args.rows, args.vocab, args.hidden = 256, 20_000, 64
    if args.variant:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args)))
        return
    print(f"rows {args.rows}, vocabulary {args.vocab}, hidden {args.hidden}, {args.dtype} on {args.device}, chunk {args.chunk}")
    print(f"{'loss':12} {'variant':8} {'ms':>9} {'peak MB':>9} {'times as fast':>14} {'of the memory':>14}   loss, gradient norm")
    for loss in LOSSES:
        missing = missing_mb(args, loss)
        variants = ["chunked"] if missing > 0 else ["plain", "chunked"]
        if missing > 0:
            print(f"{loss:12} plain    skipped: {missing:.0f} MB more free memory would be needed")
        best: dict[str, dict[str, float]] = {}
        for _ in range(args.repeats):
            for variant in variants:
                found = run_apart(args, loss, variant)
                if variant not in best or found["ms"] < best[variant]["ms"]:
                    best[variant] = found
        for variant in variants:
            now, base = best[variant], best[variants[0]]
            ratios = f"{base['ms'] / now['ms']:13.2f}x {now['mb'] / base['mb']:13.1%}" if len(variants) > 1 else " " * 28
            print(
                f"{loss:12} {variant:8} {now['ms']:9.0f} {now['mb']:9.0f} {ratios}   {now['loss']:.6f}, {now['grad']:.6f}",
                flush=True,
            )


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
