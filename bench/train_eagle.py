"""Trains an EAGLE-2 head for a small Llama with a chat template, on text that the model itself writes.

    python bench/train_eagle.py models/SmolLM2-135M-Instruct OUT
    python bench/train_eagle.py SmolLM2-135M-Instruct.Q4_1.gguf OUT --tokenizer DIR/tokenizer.json

Needs PyTorch and tokenizers, and safetensors or, for a GGUF file, gguf. OUT becomes a directory that
`stepladder.Eagle(OUT)` reads. On one large GPU the defaults take some four minutes; --smoke shows on
a CPU in seconds that everything runs.

Text: very many chats side by side, begun with the bare chat prefix. The model invents the user's
turn, the template's tokens are forced, it answers, and so on. No question of a benchmark is used: at
most an opener of one or two words of ours.

Head: fc over [embedding of the next token, the model's last hidden state], then one layer without a
norm before its attention. fc's input is divided by its root mean square per dimension, which is
folded into fc at the end. Loss: smooth L1 to the next hidden state and the cross-entropy to the
model's own distribution, over the head fed with true states and, --unroll times, with its own.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch_llama import Llama, rotated

SYSTEM = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
END = "<|im_end|>"
TURN = {"user": "\n<|im_start|>user\n", "assistant": "\n<|im_start|>assistant\n"}
OPENERS = (
    "Translate", "Summarize", "How many", "What is", "Why", "Explain", "Write a", "Who was", "List",
    "Calculate", "Give me", "Compare", "Describe", "If a", "Rewrite", "When did",
)  # fmt: skip


class Chats:
    """What comes next in each of many chats: the template's tokens where they are due, else a token of
    the model's at the row's temperature."""

    def __init__(self, encode, rows: int, device, special: list[int], openers: float):
        self.end = encode(END)[0]
        turns = [encode(TURN["assistant"]), encode(TURN["user"])]  # behind a user's turn, an answer
        starts = [encode(o) for o in OPENERS]
        most = max(map(len, turns + starts))
        self.forced = torch.tensor(
            [[*t, *[0] * (most - len(t))] for t in turns + starts], device=device
        )
        self.lengths = torch.tensor([len(t) for t in turns + starts], device=device)
        self.script = torch.full((rows,), -1, device=device)  # row of `forced` that is due
        self.place = torch.zeros(rows, dtype=torch.long, device=device)
        opened = torch.rand(rows, device=device) < openers
        chosen = torch.randint(len(turns), len(turns) + len(starts), (rows,), device=device)
        self.script[opened] = chosen[opened]
        self.answers = torch.zeros(rows, dtype=torch.bool, device=device)
        self.turn_length = torch.zeros(rows, dtype=torch.long, device=device)
        share = torch.arange(rows, device=device) / rows
        # Half the answers are greedy, a quarter at .7, a quarter at 1; questions are never greedy.
        self.answering = torch.where(share < 0.5, 0.0, torch.where(share < 0.75, 0.7, 1.0))
        self.asking = 0.8 + 0.2 * torch.rand(rows, device=device)
        self.never = torch.tensor([t for t in special if t != self.end], device=device)
        self.prefix = encode(SYSTEM + END + TURN["user"])

    def first(self, rows: int, device) -> torch.Tensor:
        return torch.tensor([self.prefix] * rows, device=device)

    def __call__(self, logits: torch.Tensor, position: int) -> torch.Tensor:
        logits[:, self.never] = -math.inf
        heat = torch.where(self.answers, self.answering, self.asking)[:, None]
        noise = -torch.log(-torch.log(torch.rand_like(logits).clamp_(1e-20, 1 - 1e-7)))
        token = (logits + heat * noise).argmax(-1)
        # A turn that does not end ends here.
        most = torch.where(self.answers, 400, 120)
        token = torch.where(self.turn_length >= most, self.end, token)
        due = self.script >= 0
        token = torch.where(due, self.forced[self.script.clamp(min=0), self.place], token)
        self.turn_length += 1
        self.place = torch.where(due, self.place + 1, 0)
        done = due & (self.place >= self.lengths[self.script.clamp(min=0)])
        self.turn_length[done & (self.script < 2)] = 0
        self.script[done], self.place[done] = -1, 0
        ended = ~due & (token == self.end)
        self.script = torch.where(ended, self.answers.long(), self.script)
        self.answers = self.answers ^ ended
        return token


def write_texts(target: Llama, encode, special, o) -> torch.Tensor:
    """[batches * rows, length], on the device."""
    out, began = [], time.time()
    for batch in range(o.batches):
        openers = 0.6 if batch % 5 in (1, 3) else 0.0
        chats = Chats(encode, o.rows, target.device, special, openers)
        first = chats.first(o.rows, target.device)
        out.append(target.write(first, o.length + 1, chats).to(torch.int32))
        print(
            f"texts: {len(out) * o.rows * o.length} tokens, {time.time() - began:.0f} s", flush=True
        )
    return torch.cat(out)


class Head(nn.Module):
    def __init__(self, target: Llama, scale: torch.Tensor):
        super().__init__()
        w, q, kv = target.width, target.heads * target.dim, target.kv_heads * target.dim
        ffn = target.config["intermediate_size"]
        self.register_buffer("scale", scale)  # [2 width]

        def linear(n, k, bias=False):
            layer = nn.Linear(k, n, bias=bias)
            nn.init.normal_(layer.weight, std=1 / math.sqrt(k))
            return layer

        self.fc = linear(w, 2 * w, bias=True)
        nn.init.zeros_(self.fc.bias)
        self.q, self.k, self.v, self.o = linear(q, w), linear(kv, w), linear(kv, w), linear(w, q)
        self.gate, self.up, self.down = linear(ffn, w), linear(ffn, w), linear(w, ffn)
        self.norm = nn.Parameter(torch.ones(w))
        self.heads, self.kv_heads, self.dim = target.heads, target.kv_heads, target.dim
        self.eps, self.rope = target.eps, target.rope

    def forward(self, embeddings, states, earlier):
        """One step over whole texts. `earlier`: keys and values of the steps before, each [rows, heads,
        length, dim]; those of step 0 were fed true states. A row of step j reads true rows up to j
        before its own, then the row of each later step that leads to it."""
        rows, length = embeddings.shape[:2]
        table = self.rope[:, :length]

        def split(y, n):
            return y.view(rows, length, n, self.dim).transpose(1, 2)

        x = self.fc(torch.cat((embeddings, states), -1) / self.scale)
        q = rotated(split(self.q(x), self.heads), table)
        share = self.heads // self.kv_heads
        k = rotated(split(self.k(x), self.kv_heads), table).repeat_interleave(share, 1)
        v = split(self.v(x), self.kv_heads).repeat_interleave(share, 1)
        step, all_steps = len(earlier), [*earlier, (k, v)]
        if step == 0:
            read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scale = 1 / math.sqrt(self.dim)
            far = torch.arange(length, device=q.device)
            hidden = far[:, None] - far[None, :] < step
            scores = (q @ all_steps[0][0].transpose(-1, -2) * scale).masked_fill(hidden, -1e30)
            own = [(q * shifted(key, step - i)).sum(-1, keepdim=True) * scale
                   for i, (key, _) in enumerate(all_steps) if i > 0]  # fmt: skip
            weights = torch.cat((scores.float(), *own), -1).softmax(-1).to(v.dtype)
            read = weights[..., :length] @ all_steps[0][1]
            for i, (_, value) in enumerate(all_steps[1:], 1):
                read = read + weights[..., length + i - 1, None] * shifted(value, step - i)
        x = x + self.o(read.transpose(1, 2).reshape(rows, length, -1))
        wide = x.float()
        a = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps) * self.norm
        x = x + self.down(F.silu(self.gate(a)) * self.up(a))
        return x, all_steps


def shifted(x: torch.Tensor, by: int) -> torch.Tensor:
    """Row p becomes row p + by; the first ones are zero."""
    return F.pad(x, (0, 0, by, 0))[..., : x.shape[-2], :] if by else x


def unrolled(head: Head, target: Llama, tokens: torch.Tensor, states: torch.Tensor, steps: int):
    """The head's outputs y [rows, length - 1, width] step by step; that of row p stands for p + 1."""
    embeddings = target.embedding[tokens[:, 1:]].float()
    fed, earlier, out = states, [], []
    for _ in range(steps):
        y, earlier = head(embeddings, fed, earlier)
        out.append(y)
        fed = shifted(y, 1)
    return out


def agreement(head: Head, target: Llama, texts: torch.Tensor, depth: int) -> list[float]:
    """How often the head's first guess is the model's, by depth, fed the true tokens."""
    right, seen = torch.zeros(depth), 0
    with torch.no_grad():
        for tokens in texts.long().split(4):
            states = target.states(tokens).float()
            want = F.linear(states[:, 1:].to(torch.bfloat16), target.head).argmax(-1)
            for d, y in enumerate(unrolled(head, target, tokens, states[:, :-1], depth)):
                guess = F.linear(y.to(torch.bfloat16), target.head).argmax(-1)
                right[d] += (guess == want)[:, depth:].float().sum().item()
            seen += want[:, depth:].numel()
    return [round(r / seen, 3) for r in right.tolist()]


def train(target: Llama, texts: torch.Tensor, o) -> Head:
    held, texts = texts[: o.held], texts[o.held :]
    sample = texts[torch.randperm(len(texts), device=texts.device)[: o.batch]].long()
    inputs = torch.cat((target.embedding[sample[:, 1:]], target.states(sample)[:, :-1]), -1).float()
    scale = inputs.square().mean((0, 1)).sqrt().clamp(min=1e-4)
    size = inputs[..., target.width :].square().mean().sqrt().item()
    head = Head(target, scale).to(target.device)
    optimizer = torch.optim.AdamW(
        head.parameters(), lr=o.rate, betas=(0.9, 0.95), weight_decay=0.01
    )

    def rate_at(step):
        warm = max(1, o.steps // 20)
        along = min(1.0, max(0.0, (step - warm) / max(1, o.steps - warm)))
        return min((step + 1) / warm, 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * along)))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_at)
    order = torch.randperm(len(texts), device=texts.device)
    began = time.time()
    for step in range(o.steps):
        at = step * o.batch % max(1, len(texts) - o.batch + 1)
        if at < o.batch:
            order = torch.randperm(len(texts), device=texts.device)
        tokens = texts[order[at : at + o.batch]].long()
        with torch.autocast(target.device.type, torch.bfloat16):
            states = target.states(tokens).float()
            fed = states[:, :-1] + (torch.rand_like(states[:, :-1]) * 2 - 1) * o.noise * size
            with torch.no_grad():
                want = F.linear(states[:, 1:].to(torch.bfloat16), target.head).float().softmax(-1)
            loss = torch.zeros((), device=target.device)
            for j, y in enumerate(unrolled(head, target, tokens, fed, o.unroll)):
                chances = F.linear(y.to(torch.bfloat16), target.head).float().log_softmax(-1)
                cross = -(want * chances)[:, j:].sum(-1).mean()
                near = F.smooth_l1_loss(y.float()[:, j:], states[:, 1 + j :])
                loss = loss + 0.8**j * (o.near * near + o.cross * cross)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 199 or step + 1 == o.steps:
            print(
                f"step {step + 1}: loss {loss.item():.4f}, {time.time() - began:.0f} s", flush=True
            )
    depth = min(6, o.length - 2)
    print("first guesses right by depth:", agreement(head, target, held, depth), flush=True)
    return head


def save(head: Head, target: Llama, out: Path) -> None:
    from safetensors.torch import save_file

    names = {"q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
             "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}  # fmt: skip
    tensors = {"fc.weight": head.fc.weight / head.scale, "fc.bias": head.fc.bias,
               "layers.0.post_attention_layernorm.weight": head.norm}  # fmt: skip
    tensors |= {f"layers.0.{n}.weight": getattr(head, a).weight for a, n in names.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_file(
        {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in tensors.items()},
        out / "model.safetensors",
    )
    c = target.config
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "bias": True,
              "num_hidden_layers": 1, "head_dim": target.dim, "torch_dtype": "bfloat16"}  # fmt: skip
    for key in ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
                "rms_norm_eps", "rope_theta", "max_position_embeddings"):  # fmt: skip
        if key in c:
            config[key] = c[key]
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def options() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("target", type=Path, help="a Hugging Face directory, or a GGUF file")
    p.add_argument("out", type=Path)
    p.add_argument(
        "--tokenizer", type=Path, help="tokenizer.json; the directory's own unless given"
    )
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--rows", type=int, default=1536, help="chats side by side")
    p.add_argument("--batches", type=int, default=5, help="of them, one after the other")
    p.add_argument("--length", type=int, default=1024, help="tokens of a chat")
    p.add_argument("--held", type=int, default=32, help="chats that are not trained on")
    p.add_argument("--steps", type=int, default=4500)
    p.add_argument("--batch", type=int, default=8, help="chats of a step")
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument(
        "--unroll", type=int, default=1, help="steps of a text fed with the head's own states"
    )
    p.add_argument(
        "--near", type=float, default=1.0, help="weight of the distance to the next state"
    )
    p.add_argument("--cross", type=float, default=0.1, help="weight of the cross-entropy")
    p.add_argument("--noise", type=float, default=0.2, help="on states, of their root mean square")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--smoke", action="store_true", help="as little of everything as runs")
    o = p.parse_args()
    if o.smoke:
        o.rows, o.batches, o.length, o.held, o.steps, o.batch = 6, 1, 112, 2, 4, 2
        o.unroll = max(o.unroll, 3)
    return o


def main() -> None:
    o = options()
    torch.manual_seed(o.seed)
    if o.device == "cuda":
        # It plans anew for every length: 62 ms a token instead of 17.
        torch.backends.cuda.enable_cudnn_sdp(False)
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(o.tokenizer or o.target / "tokenizer.json"))
    special = [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
    target = Llama(o.target, o.device, o.length + 1)

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False).ids

    texts = write_texts(target, encode, special, o)
    began = time.time()
    head = train(target, texts, o)
    save(head, target, o.out)
    print(f"{o.out}: trained in {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
