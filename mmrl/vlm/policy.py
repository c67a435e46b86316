"""The vision-language policy: `mmrl.training.policy.Policy` for the Qwen-VL shapes.

Axes: N rollouts, T decisions (tokens, the end token included), n rows of a piece, R tokens of its longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch

from mmrl.core.streams import Streams
from mmrl.data.records import Record
from mmrl.errors import RecordError, UserError, nearest
from mmrl.training import precision, weights
from mmrl.training.policy import Bundle, Needs, Piece, Policy, Scope
from mmrl.training.reference import Reference
from mmrl.training.rollouts import Request, Rollouts
from mmrl.vlm import loading, lora, packed, prefix, repeated
from mmrl.vlm.adapters import Shape
from mmrl.vlm.assemble import assemble
from mmrl.vlm.batching import Chunk, plan
from mmrl.vlm.config import Inputs, Model, Sampling
from mmrl.vlm.encode import Encoder, Prompt, pictures_of, plain_text
from mmrl.vlm.head import Head, choice, reduce_logits, score
from mmrl.vlm.rows import Completions, Row
from mmrl.vlm.sampler import Job, Sampled, Sampler, Settings
from mmrl.vlm.show import pixel_boxes, true_boxes

T = TypeVar("T")


class VlmPolicy(Policy):
    """A loaded model with its processor. `model` may be a peft wrapper; it is on its device already.

    adapter_at_zero   the adapter is fresh, so that switching it off gives the reference.
    """

    unit = "decision"
    channels = ("tokens",)
    provides = frozenset({"logp_nt", "entropy_nt", "supervised_nt"})
    keys = frozenset({"prompt", "record", "task"})
    reduces = True

    ENCODER: type[Encoder] = Encoder  # turns records into prompts, by INPUT_OPTIONS where it has some

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        options: Model,
        sampling: Sampling,
        inputs: Inputs,
        adapter_at_zero: bool = False,
    ) -> None:
        self.model, self.processor = model, processor
        self.options, self.sampling, self.inputs = options, sampling, inputs
        self.shape = Shape(model)
        self.encoder = self.ENCODER(processor, self.shape, inputs)
        self.form = shared_prefix_form(options)
        self.ends = self.shape.ends(processor.tokenizer) | self._ids(sampling.stop, "sampling.stop")
        self.suppressed = self.shape.suppressed(processor.tokenizer) | self._ids(sampling.suppress, "sampling.suppress")
        if self.suppressed & self.ends:
            raise UserError(f"sampling.suppress: token {min(self.suppressed & self.ends)} is an end token; remove it")
        self._reference = Reference(model, without_adapter=model.disable_adapter if adapter_at_zero else None)
        self.sampler_stats: dict[str, float] = {}
        self._shards: Any = None  # mmrl.training.fsdp.Shards once there are any

    @property
    def noisy(self) -> bool:
        return self.options.allow_dropout

    @property
    def device(self) -> torch.device:
        return self.shape.device

    # sampling

    def rollout(self, requests: Sequence[Request], streams: Streams, *, greedy: bool = False) -> Rollouts:
        self.encoder.fresh()
        jobs: list[Job] = []
        for request in requests:
            prompt = self._prompt_of(request, streams)
            settings = self._settings(request, greedy)
            for sample in range(request.first_sample, request.first_sample + request.n):
                jobs.append(Job(prompt, settings, streams.generator(request.record.id, sample)))
        sampler = Sampler(
            self.shape,
            ends=self.ends,
            batch_rows=self.sampling.batch_rows,
            prompt_tokens=self.options.piece_tokens,
        )
        with self._mode(training=False), self._autocast():
            found = self._inside(lambda: sampler(jobs, self.head()))
        self.encoder.fresh()
        return assemble(
            requests,
            found,
            texts=[self.text(s.row) for s in found],
            stats=sampler.stats.as_dict(),
            sampling=self.sampling,
        )

    def _prompt_of(self, request: Request, streams: Streams) -> Prompt:
        return self.encoder(request.record, request.prompt_edit)

    def demonstrations(self, records: Sequence[Record], streams: Streams) -> Rollouts:
        """The tokens of each `response` and the end token, at temperature 1; `sampler_logp_nt` is NaN."""
        self.encoder.fresh()
        found = [self._demonstration(record) for record in records]
        self.encoder.fresh()
        requests = [Request(record, 1) for record in records]
        texts = [str(r.response) for r in records]
        return assemble(requests, found, texts=texts, stats={}, sampling=self.sampling)

    def _demonstration(self, record: Record) -> Sampled:
        if record.response is None:
            raise RecordError(record.id, "no `response` to imitate; add one, or use another recipe than sft")
        ids = [*self.encoder.response_ids(record.response), self._end()]
        bad = self.suppressed.intersection(ids)
        if bad:
            token = self.processor.tokenizer.convert_ids_to_tokens(min(bad))
            raise RecordError(record.id, f"`response` contains {token!r}, which is never sampled; remove it")
        row = Row(self.encoder(record), torch.tensor(ids, dtype=torch.long))
        return Sampled(row, torch.full((len(ids),), float("nan")), finished=True)

    def _end(self) -> int:
        """The end token that the chat template uses, where there are several."""
        eos = self.processor.tokenizer.eos_token_id
        return int(eos) if eos is not None else min(self.ends)

    def _settings(self, request: Request, greedy: bool) -> Settings:
        known = ("temperature", "top_p", "top_k", "max_new_tokens")
        valid = (*known, *self.INPUT_OPTIONS)
        for name in request.sampling:
            if name not in valid:
                raise UserError(f"sampling override: unknown option {name!r}{nearest(name, valid)}")
        own = {k: v for k, v in request.sampling.items() if k in known}
        merged = Sampling.model_validate(self.sampling.model_dump() | own)
        return Settings(**{k: getattr(merged, k) for k in known}, greedy=greedy)

    def text(self, row: Row) -> str:
        """Decoded completion without its end token; other special tokens stay visible."""
        ids = row.ids.tolist()
        if ids and ids[-1] in self.ends:
            ids = ids[:-1]
        return str(self.processor.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def _ids(self, tokens: Sequence[str | int], where: str) -> set[int]:
        """Ids of configured tokens; UserError for text that is not exactly one token."""
        found: set[int] = set()
        rows = self.shape.head.weight.shape[0]
        for token in tokens:
            ids = [token] if isinstance(token, int) else self.encoder.response_ids(token)
            if len(ids) != 1 or not 0 <= ids[0] < rows:
                raise UserError(f"{where}: {token!r} is not one token of this model; give single tokens or their ids")
            found.add(ids[0])
        return found

    # likelihood

    def bundles(self, rollouts: Rollouts, *, channel: str, update: int, scope: Scope) -> list[Bundle]:
        groups = rollouts.keys["prompt"].tolist()
        width = int(rollouts.tables[channel]["mask_nt"].shape[1])
        budget = self.options.piece_tokens
        return plan(rollouts.rows, groups, width=width, scope=scope, form=self.form, budget=budget)

    def open(self, bundle: Bundle, *, grad: bool) -> Any:
        if self.form != "cache":
            return None
        with self._mode(training=False), self._autocast():
            return prefix.open_prefix(self.shape, bundle.data, grad=grad)

    def evaluate(self, piece: Piece, shared: Any, needs: Needs) -> dict[str, torch.Tensor]:
        """Tables [n, T] of the wanted channels, zero beyond each row's end."""
        chunk: Chunk = piece.data
        rows = Completions.of(chunk.rows, self.shape.device)
        with self._mode(training=torch.is_grad_enabled() and self._trains_in_train_mode), self._autocast():
            return self._inside(lambda: self._tables(self._hidden(chunk, rows, shared), rows, piece, needs))

    def _hidden(self, chunk: Chunk, rows: Completions, shared: Any) -> torch.Tensor:
        """Hidden states [n, R, d] that predict the tokens of the rows."""
        if self.form == "off":
            return repeated.completion_hidden(self.shape, chunk.rows, rows)
        if self.form == "packed":
            return packed.completion_hidden(self.shape, chunk.rows, chunk.prompts, chunk.prompt_n)
        if torch.is_grad_enabled() and not shared.grad:
            raise RuntimeError("evaluate with gradient on a prefix that was opened without; open it with grad=True")
        return prefix.completion_hidden(self.shape, shared, rows, torch.tensor(chunk.prompt_n, device=rows.ids.device))

    def _tables(self, hidden: torch.Tensor, rows: Completions, piece: Piece, needs: Needs) -> dict[str, torch.Tensor]:
        chunk: Chunk = piece.data
        head, size = self.head(), self.options.head_chunk
        entropy = "entropy_nt" in needs.channels
        chosen = choice(rows.ids, rows.mask, rows.temperature, [r.kept for r in chunk.rows])
        out: dict[str, torch.Tensor] = {}
        if needs.channels:
            logp, h = score(hidden[rows.mask], head, chosen, size=size, entropy=entropy)
            table = _spread(logp, rows.mask, chunk.width)
            out |= {"logp_nt": table, "supervised_nt": -table}
            if entropy:
                out["entropy_nt"] = _spread(h, rows.mask, chunk.width)
        if needs.reducers:
            context = {
                "ids_nc": rows.ids,
                "mask_nc": rows.mask,
                "rows_n": piece.rows.to(rows.ids.device),
                "group_n": torch.tensor(chunk.group_n, device=rows.ids.device),
                "temperature_n": rows.temperature,
            }
            for name, value in reduce_logits(hidden, head, needs.reducers, context, size=size).items():
                value = value.masked_fill(~rows.mask, 0.0)
                out[name] = torch.nn.functional.pad(value, (0, chunk.width - value.shape[1]))
        return {k: v for k, v in out.items() if k in needs.channels or k in needs.reducers}

    def close(self, shared: Any) -> None:
        if shared is not None:
            prefix.close_prefix(shared)

    def head(self) -> Head:
        """The output layer in the precision of this pass."""
        layer = self.shape.head
        forbidden = torch.zeros(layer.weight.shape[0], device=layer.weight.device)
        forbidden[torch.tensor(sorted(self.suppressed), dtype=torch.long, device=layer.weight.device)] = float("-inf")
        dtype = torch.bfloat16 if self._amp else layer.weight.dtype
        bias = getattr(layer, "bias", None)
        return Head(layer.weight, bias, forbidden.to(torch.promote_types(dtype, torch.float32)), dtype)

    # modes

    @property
    def _amp(self) -> bool:
        return precision.is_half(self.options.autocast, self.shape.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        return precision.autocast(self.options.autocast, self.shape.device)

    @property
    def _trains_in_train_mode(self) -> bool:
        """Gradient checkpointing works in train mode only; dropout, when allowed, lives there too."""
        return self.options.gradient_checkpointing or self.options.allow_dropout

    @contextmanager
    def _mode(self, *, training: bool) -> Iterator[None]:
        if self.model.training != training:
            self.model.train(training)
        yield

    # weights

    def whole(self) -> AbstractContextManager[None]:
        return nullcontext() if self._shards is None else self._shards.whole()  # type: ignore[no-any-return]

    def shard(self, size: int) -> None:
        """Layers of the language model are units; pictures, embeddings and head belong to the root's, because a rank
        may have no picture. The prefix is packed with its rows: every piece is then one forward and one backward."""
        from mmrl.training.fsdp import Shards

        self.form = form_in_shards(self.options)
        layers: Any = self.shape.language.layers
        self._shards = Shards(self.shape.whole, list(layers), size=size)

    @property
    def sharded(self) -> bool:
        return self._shards is not None

    def _inside(self, work: Callable[[], T]) -> T:
        """Run what uses the weights where they can be used: for shards, inside of their root."""
        return work() if self._shards is None else self._shards.run(work)  # type: ignore[no-any-return]

    def reference(self) -> AbstractContextManager[None]:
        return self._reference.active()

    def keep_reference(self, channel: str) -> None:
        self._reference.keep()

    def parameters_of(self, channel: str) -> list[torch.nn.Parameter]:
        return list(weights.trainable(self.model).values())

    def save(self, path: Path) -> None:
        """`save_pretrained`: the whole model, or the peft adapter; the processor beside it."""
        size = sum(p.numel() * p.element_size() for p in self.model.parameters())
        with loading.bars(size), lora.quiet_peft():
            if self._shards is None:
                self.model.save_pretrained(path)
            else:  # asked for its own state, a model in shards gives shards
                tensors = self.model.named_parameters(remove_duplicate=False)
                self.model.save_pretrained(path, state_dict={n: p.detach() for n, p in tensors})
        self.processor.save_pretrained(path)

    def state_dict(self) -> dict[str, torch.Tensor]:
        return weights.trainable_state(self.model)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        weights.load_trainable(self.model, state)

    # people

    def token_texts(self, rollouts: Rollouts, row: int) -> list[str]:
        """Tokens as text, the end token among them. Where a character takes several tokens the last of them has it."""
        decode, out, open_ids = self.processor.tokenizer.decode, [], []
        ids = rollouts.rows[row].ids.tolist()
        for at, token in enumerate(ids):
            open_ids.append(token)
            text = str(decode(open_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
            whole = not text.endswith("\ufffd") or len(open_ids) == 4 or at == len(ids) - 1
            out.append(text if whole else "")
            open_ids = [] if whole else open_ids
        return out

    def describe(self, rollouts: Rollouts, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Prompt, output, pictures; where there is a picture, said and true boxes in pixels of the first one."""
        found = []
        for i in rows:
            record, output = rollouts.records[i], str(rollouts.outputs[i])
            shown = {"prompt": plain_text(record), "output": output, "images": pictures_of(record, self.inputs)}
            if record.images:
                original, seen = rollouts.rows[i].prompt.sizes[0]
                shown["boxes"] = pixel_boxes(output, record, original_size=original, model_size=seen)
                shown["gold"] = true_boxes(record, original_size=original, model_size=seen)
            found.append(shown)
        return found


def shared_prefix_form(options: Model) -> str:
    """cache | packed | off, from the options; UserError for pairs that cannot work together."""
    form = options.shared_prefix
    if options.allow_dropout and form in ("cache", "packed"):
        raise UserError(
            f"model.shared_prefix: {form} needs equal prompts in every row, which model.allow_dropout breaks; "
            "set shared_prefix to off or allow_dropout to false"
        )
    if options.gradient_checkpointing and form == "cache":
        raise UserError(
            "model.shared_prefix: cache cannot be used with model.gradient_checkpointing; set it to packed or auto"
        )
    if form == "packed" and options.attention == "flash_attention_2":
        raise UserError("model.shared_prefix: packed needs a block mask, which flash_attention_2 lacks; use sdpa")
    if form != "auto":
        return form
    if options.allow_dropout or (options.gradient_checkpointing and options.attention == "flash_attention_2"):
        return "off"
    return "packed" if options.gradient_checkpointing else "cache"


def form_in_shards(options: Model) -> str:
    """The same for distributed.mode: fsdp2, where a piece is one forward and one backward: packed | off."""
    form = shared_prefix_form(options)
    if form != "cache":
        return form
    if options.shared_prefix == "cache":
        raise UserError("model.shared_prefix: cache cannot be used with distributed.mode: fsdp2; use auto or packed")
    return "off" if options.attention == "flash_attention_2" else "packed"


def _spread(values_m: torch.Tensor, mask_nr: torch.Tensor, width: int) -> torch.Tensor:
    """Values of the real positions back into [n, T], zero elsewhere."""
    table = values_m.new_zeros(mask_nr.shape).masked_scatter(mask_nr, values_m)
    return torch.nn.functional.pad(table, (0, width - mask_nr.shape[1]))
