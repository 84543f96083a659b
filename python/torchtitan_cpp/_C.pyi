"""Written by scripts/generate_stub.py from the built module; do not edit."""

import collections.abc
import torch
import torch.distributed.distributed_c10d
import typing

class collectives:

    class CollectiveError(RuntimeError):
        """A collective failed: one line, with the rank to blame where it is known."""

    class FlightRecorder:
        """The last collectives of a rank, for a JSON file."""
        def __init__(self, *, rank: int, size: int, capacity: int, run: str, path: str) -> None: ...
        @property
        def step(self) -> int:
            """Training step that later collectives are noted with."""
        @step.setter
        def step(self, value: int) -> None: ...
        def to_json(self, cause: str) -> str:
            """The text of the file."""
        def write(self, cause: str) -> None:
            """Replace the file; RuntimeError if that fails."""
        def write_on_abort(self, watch: collectives.Watch) -> None:
            """Write the file once the watch is aborted."""

    class Group:
        """Ranks that exchange tensors; all start the same verbs in the same order. Tensors are contiguous and stay untouched until wait()."""
        def __init__(self, name: str='self') -> None:
            """The identity: a group of one rank."""
        @property
        def rank(self) -> int:
            """Rank within the group."""
        @property
        def size(self) -> int:
            """Number of ranks."""
        @property
        def name(self) -> str:
            """Name of the mesh axis."""
        def all_reduce(self, tensor: torch.Tensor, *, op: collectives.ReduceOp=...) -> collectives.Handle:
            """Reduce over all ranks in place."""
        def all_gather(self, out: torch.Tensor, input: torch.Tensor) -> collectives.Handle:
            """Concatenate the ranks' input [k] into out [size * k]."""
        def reduce_scatter(self, out: torch.Tensor, input: torch.Tensor) -> collectives.Handle:
            """Sum piece `rank` of the ranks' input [size * k] into out [k]."""
        def all_to_all(self, out: torch.Tensor, input: torch.Tensor, *, out_splits: collections.abc.Sequence[int], in_splits: collections.abc.Sequence[int]) -> collectives.Handle:
            """Send in_splits[j] rows to rank j and receive out_splits[j] rows from it."""
        def broadcast(self, tensor: torch.Tensor, *, root: int) -> collectives.Handle:
            """Copy the tensor of rank `root`."""
        def send(self, tensor: torch.Tensor, *, peer: int, tag: int=0) -> collectives.Handle:
            """Send to a rank of the group."""
        def recv(self, tensor: torch.Tensor, *, peer: int, tag: int=0) -> collectives.Handle:
            """Receive from a rank of the group."""
        def barrier(self) -> collectives.Handle:
            """Meet all ranks in wait()."""

    class Handle:
        """An operation under way."""
        def wait(self) -> None:
            """Return once the outputs may be read and the inputs written."""
        def completed(self) -> bool:
            """Whether wait() would return without waiting for other ranks."""

    class Heartbeat:
        """Announces this rank in a store and names those that are lost."""
        def __init__(self, store: torch.distributed.distributed_c10d.Store, *, rank: int, size: int, interval_seconds: float, store_owner: str, longest_idle_seconds: float, watch: collectives.Watch) -> None: ...
        def report(self, cause: str) -> str:
            """Publish why this rank ends the run; returns the first cause of all ranks."""
        def stop(self) -> None:
            """End the thread."""
        def leave(self) -> None:
            """End the thread of a rank that has done its part of the run."""

    class LocalWorld:
        """Ranks that are threads of this process."""
        def __init__(self, size: int, *, timeout_seconds: float) -> None: ...
        @property
        def size(self) -> int:
            """Number of ranks."""
        def group(self, rank: int, *, name: str='world', ranks: collections.abc.Sequence[int] | None=None) -> collectives.Group:
            """The group of `ranks` (default all), in that order, as seen by `rank`."""
        def set_timeout(self, seconds: float) -> None:
            """Longest wait for one operation, of waits that begin after it."""
        def set_patient(self, rank: int, patient: bool) -> None:
            """Whether waits of the rank have no deadline."""
        def abort(self, cause: str) -> None:
            """Make every rank throw CollectiveError(cause); the first cause stays."""

    class Recorder:
        """Calls, bytes and seconds of the groups it records."""
        def __init__(self) -> None: ...
        def totals(self) -> dict[tuple[str, str], collectives.Traffic]:
            """Traffic by (group name, verb)."""
        def totals_by_group(self) -> dict[str, collectives.Traffic]:
            """Traffic by group name, all verbs together."""
        def total(self, group: str, verb: str) -> collectives.Traffic:
            """Traffic of one verb on one group; zeros if it was never called."""
        def reset(self) -> None:
            """Forget everything."""

    class ReduceOp:
        """How all_reduce combines values.

        Members:

          SUM

          MAX

          MIN"""
        def __init__(self, value: int) -> None: ...
        def __repr__(self, /) -> str: ...
        @property
        def name(self) -> str: ...
        def __str__(self, /) -> str: ...
        __members__: dict[str, collectives.ReduceOp]
        def __eq__(self, other: object, /) -> bool: ...
        def __ne__(self, other: object, /) -> bool: ...
        def __hash__(self, /) -> int: ...
        @property
        def value(self) -> int: ...
        def __int__(self, /) -> int: ...
        def __index__(self, /) -> int: ...
        SUM: collectives.ReduceOp
        MAX: collectives.ReduceOp
        MIN: collectives.ReduceOp

    class Traffic:
        """Totals, such as of one verb on one group."""
        @property
        def calls(self) -> int: ...
        @property
        def bytes(self) -> int:
            """Of the larger side of each call."""
        @property
        def seconds(self) -> float:
            """That callers spent in verbs and in waiting for them."""

    class Watch:
        """Deadline and abort of all waits of this process."""
        def __init__(self, *, timeout_seconds: float) -> None: ...
        @property
        def timeout_seconds(self) -> float:
            """Longest wait for one operation."""
        @timeout_seconds.setter
        def timeout_seconds(self, value: float) -> None: ...
        @property
        def patient(self) -> bool:
            """Whether waits have no deadline, as long as a heartbeat guards them."""
        @patient.setter
        def patient(self, value: bool) -> None: ...
        @property
        def step(self) -> int:
            """Training step, for messages; -1 before the first."""
        @step.setter
        def step(self, value: int) -> None: ...
        @property
        def aborted(self) -> bool:
            """Whether abort() was called."""
        def abort(self, cause: str) -> None:
            """End all waits with CollectiveError(cause); the first cause stays."""
        def close(self) -> None:
            """Drop the process groups of all groups; call before they are destroyed."""
    @staticmethod
    def c10d_group(process_group: torch.distributed.distributed_c10d.ProcessGroup, *, name: str, watch: collectives.Watch) -> collectives.Group:
        """The ranks of a torch.distributed process group."""
    @staticmethod
    def fake_group(name: str, *, rank: int, size: int) -> collectives.Group:
        """A group whose other ranks do not exist, for dry runs."""
    @staticmethod
    def recorded(group: collectives.Group, recorder: collectives.Recorder) -> collectives.Group:
        """The same group, counted by the recorder."""
    @staticmethod
    def traced(group: collectives.Group, recorder: collectives.FlightRecorder, *, ranks: collections.abc.Sequence[int]) -> collectives.Group:
        """The same group, recorded; ranks are those of the world, in its order."""

class config:

    class DateTime:
        """A date or time, which no field takes."""
        @property
        def text(self) -> str: ...

    class TomlEntry:
        """A key of a table and its value."""
        @property
        def line(self) -> int:
            """Line of the key."""
        @property
        def column(self) -> int: ...
        @property
        def value(self) -> config.TomlValue: ...

    class TomlValue:
        """A value and where it was written."""
        @property
        def line(self) -> int: ...
        @property
        def column(self) -> int: ...
        @property
        def value(self) -> object:
            """bool, int, float, str, DateTime, a list of TomlValue, or, for a table, a dict of TomlEntry."""
    @staticmethod
    def parse_toml(text: bytes, *, source: str) -> dict[typing.Any, typing.Any]:
        """Parse a TOML 1.0 text (UTF-8) into a dict of TomlEntry.

        Raises ValueError "source:line:column: reason" at the first error of syntax; a key given twice is one."""

class core:

    class MemoryCounter:
        """Tensor bytes, counted where they are allocated."""
        @property
        def live(self) -> int:
            """Bytes alive now."""
        @property
        def peak(self) -> int:
            """Largest live since the last reset_peak()."""
        def reset_peak(self) -> None: ...
    @staticmethod
    def compiled_torch_version() -> str:
        """Version of the torch whose headers the extension was compiled with."""
    @staticmethod
    def cpu_memory() -> core.MemoryCounter:
        """Bytes of CPU tensors. The first call puts the allocator that counts and keeps pages in place of torch's."""
    @staticmethod
    def hash_bits(tensors: collections.abc.Sequence[torch.Tensor]) -> torch.Tensor:
        """One int64 for the bits of each tensor, as a CPU tensor [n]."""
    @staticmethod
    def install_stop_signal(*, echo_seconds: float) -> None:
        """Take SIGTERM over: the first one sets a flag, one that comes
        echo_seconds or more later ends the process."""
    @staticmethod
    def meta_memory() -> core.MemoryCounter:
        """Bytes that meta tensors made after the first call would have."""
    @staticmethod
    def release_kept_cpu_memory() -> None:
        """Give pages that are kept for reuse back to the system."""
    @staticmethod
    def stop_requested() -> bool:
        """Whether SIGTERM has come since install_stop_signal()."""
    @staticmethod
    def thread_memory() -> core.MemoryCounter:
        """Bytes of CPU tensors that the calling thread makes from its first call on, whoever frees them."""

class data:

    class AtEnd:
        """What stands behind the last token of a store.

        Members:

          MORE : Tokens that are not attached yet.

          REPEAT : The first token again, endlessly.

          STOP : Nothing: rows that do not fit are ignored rows."""
        def __init__(self, value: int) -> None: ...
        def __repr__(self, /) -> str: ...
        @property
        def name(self) -> str: ...
        def __str__(self, /) -> str: ...
        __members__: dict[str, data.AtEnd]
        def __eq__(self, other: object, /) -> bool: ...
        def __ne__(self, other: object, /) -> bool: ...
        def __hash__(self, /) -> int: ...
        @property
        def value(self) -> int: ...
        def __int__(self, /) -> int: ...
        def __index__(self, /) -> int: ...
        MORE: data.AtEnd
        REPEAT: data.AtEnd
        STOP: data.AtEnd

    class DamagedShard(RuntimeError):
        ...

    class TokenShardWriter:
        """Collects the ids of documents and writes them as one file."""
        def __init__(self, *, vocab_size: int) -> None: ...
        def append(self, ids: collections.abc.Sequence[int], *, place: str) -> None:
            """Add the ids of a document; ValueError names place and token of a stray id."""
        @property
        def num_tokens(self) -> int: ...
        def write(self, path: str, *, note: str) -> None:
            """Write a file beside path and rename it; RuntimeError if the system refuses."""

    class TokenStore:
        """A growing sequence of tokens in several mapped files."""
        def __init__(self) -> None: ...
        def attach(self, path: str) -> str:
            """Append a file and return its note; DamagedShard if it is not whole."""
        def truncate(self, num_shards: int) -> None:
            """Forget the files from this number on."""
        def shard_of(self, position: int) -> int:
            """Number of the file that holds a token."""
        def first_damaged(self) -> int:
            """Number of the first file whose tokens are damaged, num_shards if none is."""
        @property
        def num_shards(self) -> int: ...
        @property
        def num_tokens(self) -> int: ...
        def gather(self, *, first_sample: int, num_rows: int, seq_len: int, vocab_size: int, at_end: data.AtEnd) -> tuple[torch.Tensor, torch.Tensor]:
            """Input and labels, int64 [num_rows, seq_len], of consecutive samples."""
    @staticmethod
    def check_token_ids(input: torch.Tensor, labels: torch.Tensor, *, vocab_size: int) -> None:
        """Raise ValueError unless inputs are ids below vocab_size and labels are that or -100."""
    @staticmethod
    def first_row(microbatch: int, *, global_batch_size: int, local_batch_size: int, num_ranks: int, rank: int) -> int:
        """First row of the global batch in a microbatch of this rank."""
    @staticmethod
    def num_microbatches(*, global_batch_size: int, local_batch_size: int, num_ranks: int, rank: int) -> int:
        """Microbatches of one step; ValueError if the sizes do not fit together."""

class generation:

    class Decoder:
        """A model that reads prompts and then token after token, and says what may come next."""
        def __init__(self, model: nn.Model, *, parameters: collections.abc.Sequence[collections.abc.Sequence[torch.Tensor]], cache: generation.KeyValueCache, tensor_axis: collectives.Group, document_end: int | None) -> None:
            """`model` ends in logits and attends through `cache`; `parameters` are lists of tensors by group. `document_end` is the token after which attention begins anew, for a model that reads document starts."""
        def read(self, prompts: collections.abc.Sequence[collections.abc.Sequence[int]]) -> torch.Tensor:
            """Forget everything and read prompts; logits [prompts, vocabulary] of the token after each."""
        def read_next(self, tokens: collections.abc.Sequence[int]) -> torch.Tensor:
            """Read one more token of each row; logits [rows, vocabulary]."""
        def keep(self, rows: collections.abc.Sequence[int]) -> None:
            """Go on with these rows only, which ascend."""

    class KeyValueCache:
        """Keys and values of the tokens that a model has read."""
        def __init__(self, *, layers: int, rows: int, kv_heads: int, max_len: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None: ...
        @property
        def lengths(self) -> list[int]:
            """Tokens of each row."""

    class Sampler:
        """Chooses tokens by their logits. Random choices depend on seed, prompt, how many equal prompts stand before it, and the number of the token."""
        def __init__(self, prompts: collections.abc.Sequence[collections.abc.Sequence[int]], *, temperature: float, top_k: int | None, seed: int) -> None:
            """With temperature 0 the most likely token; with `top_k` only tokens no less likely than the k-th."""
        def choose(self, logits: torch.Tensor, *, rows: collections.abc.Sequence[int], index: int) -> list[int]:
            """For logits [R, vocabulary]: new token number `index` of prompt rows[r]."""
    @staticmethod
    def cached_attention(cache: generation.KeyValueCache) -> nn.AttentionKernel:
        """Attention of a model that reads through the cache; forward only."""

class mesh:

    class Box:
        """A hyper-rectangle of a tensor."""
        def __init__(self, *, offset: collections.abc.Sequence[int], size: collections.abc.Sequence[int]) -> None: ...
        @property
        def offset(self) -> list[int]: ...
        @property
        def size(self) -> list[int]: ...
        def num_elements(self) -> int: ...
        def __eq__(self, arg0: object, /) -> bool: ...
        __hash__ = None  # type: ignore[assignment]

    class Copy:
        """The box that one shard gives to another."""
        @property
        def source(self) -> int: ...
        @property
        def target(self) -> int: ...
        @property
        def box(self) -> mesh.Box:
            """In indices of the whole tensor."""

    class Layout:
        """Which box of a tensor every rank holds."""
        def __init__(self, global_shape: collections.abc.Sequence[int], *, splits: collections.abc.Sequence[mesh.Split]=[], replications: collections.abc.Sequence[tuple[str, int]]=[]) -> None:
            """Splits apply in order; replications are (axis, size). Raises ValueError for what does not fit the tensor."""
        @property
        def global_shape(self) -> list[int]: ...
        @property
        def splits(self) -> list[mesh.Split]: ...
        def box(self, coordinates: collections.abc.Mapping[str, int]) -> mesh.Box:
            """The box held there."""
        def is_writer(self, coordinates: collections.abc.Mapping[str, int]) -> bool:
            """Whether this rank is the one of those with its box that writes it."""
        def writers(self) -> list[dict[str, int]]:
            """Coordinates of all writers."""
        def num_shards(self) -> int: ...
        def to_placements(self, axes: collections.abc.Sequence[tuple[str, int]]) -> list[str]:
            """As DTensor prints them, one for each (axis, size) of a device mesh. Raises ValueError for what DTensor cannot say."""

    class Mesh:
        """Ranks as a grid of named axes."""
        def __init__(self, dims: mesh.ParallelDims) -> None:
            """Infers dp_shard where it is -1. Raises ValueError listing every broken rule."""
        @property
        def dims(self) -> mesh.ParallelDims:
            """The degrees, resolved."""
        def axes(self) -> list[str]:
            """Names of all axes."""
        def size(self, axis: str) -> int:
            """Ranks along an axis."""
        def coordinates(self, rank: int) -> dict[str, int]:
            """Position of a rank on every axis."""
        def coordinate(self, rank: int, axis: str) -> int:
            """Position of a rank on an axis."""
        def ranks(self, axis: str, rank: int) -> list[int]:
            """The ranks of this rank's group on an axis, in order."""

    class ParallelDims:
        """The degree of every parallelism."""
        def __init__(self, *, dp_replicate: int, dp_shard: int, cp: int, tp: int, pp: int, ep: int, etp: int, world_size: int) -> None: ...
        @property
        def dp_replicate(self) -> int: ...
        @property
        def dp_shard(self) -> int: ...
        @property
        def cp(self) -> int: ...
        @property
        def tp(self) -> int: ...
        @property
        def pp(self) -> int: ...
        @property
        def ep(self) -> int: ...
        @property
        def etp(self) -> int: ...
        @property
        def world_size(self) -> int: ...

    class Split:
        """Cuts one dim into parts along a mesh axis."""
        def __init__(self, *, axis: str, parts: int, dim: int, boundaries: collections.abc.Sequence[int]=[], repeat: int=1) -> None: ...
        @property
        def axis(self) -> str: ...
        @property
        def parts(self) -> int: ...
        @property
        def dim(self) -> int: ...
        @property
        def boundaries(self) -> list[int]:
            """parts + 1 positions; empty: the pieces of torch.chunk."""
        @property
        def repeat(self) -> int:
            """Neighbours on the axis that hold the same part."""
    @staticmethod
    def relayout(source: mesh.Layout, target: mesh.Layout) -> list[mesh.Copy]:
        """The copies that turn the shards of one layout into those of another; shards count as in writers()."""

class models:

    class llama:

        class Args:
            """Sizes of a Llama 3 model."""
            def __init__(self, *, dim: int, n_layers: int, n_heads: int, n_kv_heads: int, vocab_size: int, hidden_dim: int, norm_eps: float, rope_theta: float, rope_scaling: models.llama.RopeScaling | None, max_seq_len: int, depth_init: bool, tied_embeddings: bool, document_masks: bool) -> None: ...
            def num_params(self) -> int:
                """Parameters stored, tied ones once."""
            def flops_per_token(self, seq_len: int) -> int:
                """Training flops for one token in sequences of seq_len tokens."""

        class RopeScaling:
            """Frequency scaling of Llama 3.1's rotary embedding."""
            def __init__(self, *, factor: float, low_freq_factor: float, high_freq_factor: float, original_context: int) -> None: ...
        @staticmethod
        def build(args: models.llama.Args, *, head: str, device: torch.device, dtype: torch.dtype, tensor_axis: collectives.Group, overlap_exchanges: bool, loss_parallel: bool, attention: nn.AttentionKernel) -> nn.Model:
            """Segments and parameter groups of Llama 3. `head` is 'loss' (sum of cross-entropy) or 'logits'; `dtype` is that of the rotary arithmetic. The ranks of `tensor_axis` divide each segment's work, with `loss_parallel` also that of the loss, with `overlap_exchanges` exchanging while they multiply. `attention` knows which tokens of each sequence are here."""
        @staticmethod
        def tensor_parallel_misfit(args: models.llama.Args, ranks: int) -> str:
            """Why the model cannot be divided among `ranks`, with the numbers that it can be divided among; empty if it can."""

    class sleeping:

        class Diary:
            """What the blocks of one rank did since the last reset."""
            def __init__(self) -> None: ...
            def reset(self) -> None:
                """Stands before a step."""
            @property
            def num_works(self) -> int: ...
            @property
            def begin(self) -> float:
                """Of the first work, as time.monotonic() counts."""
            @property
            def end(self) -> float:
                """Of the last one."""
            @property
            def busy(self) -> float:
                """Seconds of all works together."""
        @staticmethod
        def build(*, num_blocks: int, seconds: float, diary: models.sleeping.Diary) -> nn.Model:
            """A model whose blocks sleep in forward and in both halves of backward, for measuring schedules."""

class nn:

    class AttentionKernel:
        """How queries meet keys, and which tokens of each sequence are here."""
        @property
        def ranks(self) -> int:
            """Ranks that share each sequence."""
        def deal(self, batch: collections.abc.Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """This rank's tokens of `input` and `labels` [B, S]; the rest of the batch as it is."""

    class HostStore:
        """Host memory for what blocks keep for their backward."""
        @property
        def memory(self) -> core.MemoryCounter:
            """Its bytes."""
        @property
        def moves(self) -> bool:
            """False where host memory is the memory of the device."""

    class Model:
        """A chain of segments and the parameter groups that they use."""
        @property
        def groups(self) -> list[nn.ParameterGroupSpec]: ...
        @property
        def segments(self) -> list[str]:
            """Names of the segments in order."""
        def with_loss(self, function: collections.abc.Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> nn.Model:
            """This model, which ends in logits, with a last segment that calls `function(logits, labels)` for the sum of the loss."""
        def forward(self, parameters: collections.abc.Sequence[collections.abc.Sequence[torch.Tensor]], values: collections.abc.Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            """Run all segments as one differentiable function. `parameters` are lists of tensors by group; returns `values` and every segment's outputs by name."""

    class ParameterGroup:
        """Parameters in one flat local buffer."""
        @property
        def name(self) -> str: ...
        @property
        def shards(self) -> list[nn.ParameterShard]: ...
        @property
        def leaves(self) -> list[torch.Tensor]:
            """The whole parameters; memory only while gathered."""
        @property
        def master(self) -> torch.Tensor: ...
        @property
        def gradient(self) -> torch.Tensor: ...
        def shard_views(self, flat: torch.Tensor) -> list[torch.Tensor]:
            """Views of a flat buffer laid out like `master`, in the shapes of `shards`."""
        def initialize(self, seed: int) -> None:
            """Fill `master` with the initial numbers of (seed, name, global element)."""

    class ParameterGroupSpec:
        """Parameters that are gathered and reduced together."""
        @property
        def name(self) -> str: ...
        @property
        def parameters(self) -> list[nn.ParameterSpec]: ...

    class ParameterShard:
        """This rank's box of one parameter."""
        @property
        def name(self) -> str: ...
        @property
        def global_shape(self) -> list[int]: ...
        @property
        def offset(self) -> list[int]: ...
        @property
        def value(self) -> torch.Tensor: ...
        @property
        def gradient(self) -> torch.Tensor: ...
        @property
        def is_writer(self) -> bool: ...

    class ParameterSpec:
        """Name, shape and initial distribution of a parameter."""
        @property
        def name(self) -> str: ...
        @property
        def shape(self) -> list[int]: ...
        @property
        def whole_shape(self) -> list[int]:
            """Of the whole parameter, of which a rank of a tensor axis may have a piece."""
        @property
        def offset(self) -> list[int]:
            """Of the piece's first element in it."""

    class Progress:
        """The step's program around a model with a forward of its own."""
        def call(self, segment: int, inputs: collections.abc.Sequence[torch.Tensor], function: collections.abc.Callable[[collections.abc.Sequence[torch.Tensor]], list[torch.Tensor]], again: collections.abc.Callable[[collections.abc.Sequence[torch.Tensor]], None] | None) -> list[torch.Tensor]:
            """Run `function` on detached inputs as a segment, with `again`, if not None, at its Recompute, and let the program go on to the next one. The results have one node of the caller's graph behind them."""
    @staticmethod
    def copies_on_host() -> nn.HostStore:
        """Copies to pinned memory, on a CPU to memory that is not counted as the device's."""
    @staticmethod
    def host_is_device() -> nn.HostStore:
        """For a CPU, where everything stays where it is."""
    @staticmethod
    def initial_value(parameter: nn.ParameterSpec, seed: int) -> torch.Tensor:
        """The whole parameter's initial numbers, float32 on the CPU."""
    @staticmethod
    def local_attention() -> nn.AttentionKernel:
        """Whole sequences on this rank."""
    @staticmethod
    def make_model(groups: collections.abc.Sequence[tuple[str, bool, collections.abc.Sequence[tuple[str, collections.abc.Sequence[int]]]]], segments: collections.abc.Sequence[tuple[str, collections.abc.Sequence[int]]], forward: collections.abc.Callable[[collections.abc.Mapping[str, torch.Tensor], int, nn.Progress], torch.Tensor]) -> nn.Model:
        """A model whose own code calls its segments: `forward(batch, progress)` gives the sum of the loss and passes each segment by `progress.call`. Groups are (name, stays gathered, [(parameter, shape)]), segments (name, [group]); the last segment is what comes after the last call."""
    @staticmethod
    def vocabulary_loss_sum(logits: torch.Tensor, labels: torch.Tensor, *, first: int, axis: collectives.Group) -> torch.Tensor:
        """The sum of the cross-entropy, float64 [], of logits [..., v] of which each rank of `axis` has the classes from `first` on, for labels [...]. Differentiable."""

class optim:

    class Adam(optim.Optimizer):
        """Adam or AdamW over the flat buffers of parameter groups."""
        def __init__(self, targets: collections.abc.Sequence[tuple[torch.Tensor, torch.Tensor]], *, beta1: float, beta2: float, eps: float, weight_decay: float, decoupled: bool, fused: bool, state_dtype: torch.dtype) -> None:
            """`targets` are (parameter, gradient) pairs of flat tensors."""
        def __len__(self) -> int: ...
        def exp_avg(self, index: int) -> torch.Tensor: ...
        def exp_avg_sq(self, index: int) -> torch.Tensor: ...

    class CalledOptimizer(optim.Optimizer):
        """An optimizer of Python, called once a step."""
        def __init__(self, gradients: collections.abc.Sequence[torch.Tensor], update: collections.abc.Callable[[], None]) -> None:
            """`gradients` are clipped in place, then `update` is called; neither happens where the gradient is not finite."""

    class Optimizer:
        """What the step's program calls."""

class parallel:

    class Applied:
        """A model's parameter groups and its programs."""
        @property
        def groups(self) -> list[nn.ParameterGroup]: ...
        @property
        def segments(self) -> list[int]:
            """Of the whole model, by segment of this rank's part."""
        @property
        def recompute(self) -> list[bool]:
            """By segment."""
        @property
        def host(self) -> nn.HostStore | None:
            """Where what is offloaded goes; None where nothing is."""
        @property
        def memory_budget_curve(self) -> list[tuple[int, int]]:
            """Bytes kept and flops of computing the rest again, over a microbatch: every choice that no other one beats in both."""
        @property
        def memory_budget_choice(self) -> tuple[int, int]:
            """The point of it that was chosen."""
        @property
        def shape(self) -> plan.StepShape:
            """Sizes that the programs were made from."""
        @property
        def training_actions(self) -> list[plan.Action]:
            """The actions of one step."""
        @property
        def training_program(self) -> str:
            """The program of one step, a line an action."""

    class Part:
        """The part of a model that one rank has."""
        @property
        def segments(self) -> list[int]:
            """Of the whole model, by segment of the part."""

    class PipelineOptions:
        """Schedules of a pipeline."""
        def __init__(self, *, group: collectives.Group, training: plan.Schedule, rounds: int, evaluation: plan.Schedule) -> None: ...

    class Recompute:
        """Activation checkpointing."""
        def __init__(self, *, mode: str, every: int=1, recomputed_modules: collections.abc.Sequence[str]=[], budget: float=1.0, rows: int=1, length: int=1, dtype: torch.dtype=torch.float32) -> None:
            """`every` is of mode selective, `recomputed_modules` of per_operation, `budget` of memory_budget. A microbatch has `rows` of `length` tokens and activations of `dtype`."""
    @staticmethod
    def apply(part: parallel.Part, *, shards: collectives.Group, replicas: collectives.Group, tensor: collectives.Group, master_dtype: torch.dtype, compute_dtype: torch.dtype, reduce_dtype: torch.dtype, device: torch.device, reshard_after_forward: str, overlap_depth: int, recompute: parallel.Recompute, num_microbatches: int, early_optimizer_step: bool, pipeline: parallel.PipelineOptions | None=None, host: nn.HostStore | None=None) -> parallel.Applied:
        """Lay out the model's parameters over the groups and make the step's programs. `host` takes what blocks keep for a backward that is not soon."""
    @staticmethod
    def as_part(model: nn.Model, *, segments_per_stage: collections.abc.Sequence[int], rank_of_stage: collections.abc.Sequence[int], rank: int) -> parallel.Part:
        """The same for a model with a forward of its own that was made for the stages of the rank; `segments_per_stage` are theirs."""
    @staticmethod
    def context_attention(ranks: collectives.Group, *, rotate_method: str, load_balancer: str) -> nn.AttentionKernel:
        """Attention of ranks that share sequences. `rotate_method` is 'allgather', 'alltoall' (around a ring) or 'ulysses' (heads for tokens), `load_balancer` 'headtail', 'none' or 'ptrr'."""
    @staticmethod
    def divide(model: nn.Model, *, dims: collections.abc.Mapping[str, int], axis: collectives.Group) -> nn.Model:
        """The model with this rank's pieces of the parameters in `dims`, by full name: that dim is divided among the ranks of `axis` like torch.chunk. All ranks hold the others whole, of which the first one counts."""
    @staticmethod
    def measure(whole: nn.Model, applied: parallel.Applied, batch: collections.abc.Mapping[str, torch.Tensor], shape: plan.StepShape, *, master_dtype: torch.dtype, compute_dtype: torch.dtype, reduce_dtype: torch.dtype) -> plan.StepShape:
        """The shape of the rank's step with the bytes of every segment, found by running its part of the model on meta tensors. `batch` is one microbatch."""
    @staticmethod
    def take_part(model: nn.Model, *, segments_per_stage: collections.abc.Sequence[int], rank_of_stage: collections.abc.Sequence[int], rank: int) -> parallel.Part:
        """The segments of the stages of a rank, and the parameters that they use."""
    @staticmethod
    def whole(model: nn.Model) -> parallel.Part:
        """A model that lies whole on every rank of the pipeline axis."""
    @staticmethod
    def with_exchanges(applied: parallel.Applied, shape: plan.StepShape, *, hidden: collections.abc.Mapping[str, collections.abc.Sequence[int]], tokens: collections.abc.Sequence[int], compute_dtype: torch.dtype, reduce_dtype: torch.dtype, device: torch.device) -> plan.StepShape:
        """The shape of the rank's step with what its segments exchange in a microbatch and what its stages send, from the sizes of what segments hand on, `hidden`, and of its tokens. Nothing is computed."""

class plan:

    class Action:
        """A small step of a training step; indices are -1 where unused."""
        def __init__(self, text: str) -> None:
            """The action that str() writes as this text; ValueError for another one."""
        @property
        def kind(self) -> str:
            """"Forward", "Unshard", "Wait", ..."""
        @property
        def waits_for(self) -> str | None:
            """Of a Wait: the kind of its start."""
        @property
        def stage(self) -> int: ...
        @property
        def segment(self) -> int: ...
        @property
        def group(self) -> int: ...
        @property
        def microbatch(self) -> int: ...
        @property
        def overlaps_next(self) -> bool:
            """Whether this Forward and the next action run together."""
        def __str__(self) -> str: ...
        def __eq__(self, arg0: object, /) -> bool: ...
        __hash__ = None  # type: ignore[assignment]

    class GroupShape:
        """Sizes of parameters that are gathered, reduced and stepped together; bytes are per element."""
        def __init__(self, *, name: str, numel: int, shard_numel: int, shards: int, replicas: int, master_bytes: int, compute_bytes: int, reduce_bytes: int, optimizer_bytes: int, reshard_after_forward: plan.Reshard, trainable: bool, shard_axis: str='fsdp', replica_axis: str='dp_replicate') -> None: ...
        @property
        def name(self) -> str: ...
        @property
        def numel(self) -> int:
            """Elements without padding."""
        @property
        def shard_numel(self) -> int:
            """Elements stored by one rank, with padding."""
        @property
        def shards(self) -> int: ...
        @property
        def replicas(self) -> int: ...
        @property
        def master_bytes(self) -> int: ...
        @property
        def compute_bytes(self) -> int: ...
        @property
        def reduce_bytes(self) -> int: ...
        @property
        def optimizer_bytes(self) -> int: ...
        @property
        def reshard_after_forward(self) -> plan.Reshard: ...
        @property
        def trainable(self) -> bool: ...
        @property
        def transport_numel(self) -> int:
            """Elements that the transport of a gather or reduction holds."""
        @property
        def shard_axis(self) -> str: ...
        @property
        def replica_axis(self) -> str: ...

    class MemoryEstimate:
        """Tensor bytes of a rank while it runs a program."""
        @property
        def before(self) -> plan.MemoryUse:
            """Between steps."""
        @property
        def after(self) -> plan.MemoryUse:
            """When the program has ended."""
        @property
        def peak(self) -> plan.MemoryUse: ...
        @property
        def peak_action(self) -> int:
            """Index of the action of the peak; -1: before the first."""
        @property
        def totals(self) -> list[int]:
            """Highest total in each action."""
        @property
        def host_peak(self) -> int:
            """Most bytes in host memory, in no total."""

    class MemoryUse:
        """Live tensor bytes by purpose."""
        @property
        def constant(self) -> int: ...
        @property
        def parameters(self) -> int: ...
        @property
        def gradients(self) -> int: ...
        @property
        def optimizer(self) -> int: ...
        @property
        def gathered(self) -> int: ...
        @property
        def whole_gradients(self) -> int: ...
        @property
        def activations(self) -> int: ...
        @property
        def temporaries(self) -> int: ...
        def total(self) -> int: ...

    class OptimizerTiming:
        """When groups are stepped.

        Members:

          AT_END : Together, clipped.

          AT_LAST_GRADIENT : Each as soon as its gradient is final, unclipped."""
        def __init__(self, value: int) -> None: ...
        def __repr__(self, /) -> str: ...
        @property
        def name(self) -> str: ...
        def __str__(self, /) -> str: ...
        __members__: dict[str, plan.OptimizerTiming]
        def __eq__(self, other: object, /) -> bool: ...
        def __ne__(self, other: object, /) -> bool: ...
        def __hash__(self, /) -> int: ...
        @property
        def value(self) -> int: ...
        def __int__(self, /) -> int: ...
        def __index__(self, /) -> int: ...
        AT_END: plan.OptimizerTiming
        AT_LAST_GRADIENT: plan.OptimizerTiming

    class PipelineSimulation:
        """Predicted times of a pipeline's programs."""
        @property
        def seconds(self) -> float: ...
        @property
        def ranks(self) -> list[plan.RankUse]: ...
        @property
        def bubble(self) -> float:
            """Idle share of the time of all ranks."""
        @property
        def spans(self) -> list[list[tuple[float, float]]]:
            """Begin and end of each rank's actions in seconds; of a start: of its message."""

    class ProgramKind:
        """What a program must do.

        Members:

          TRAINING

          FORWARD_ONLY"""
        def __init__(self, value: int) -> None: ...
        def __repr__(self, /) -> str: ...
        @property
        def name(self) -> str: ...
        def __str__(self, /) -> str: ...
        __members__: dict[str, plan.ProgramKind]
        def __eq__(self, other: object, /) -> bool: ...
        def __ne__(self, other: object, /) -> bool: ...
        def __hash__(self, /) -> int: ...
        @property
        def value(self) -> int: ...
        def __int__(self, /) -> int: ...
        def __index__(self, /) -> int: ...
        TRAINING: plan.ProgramKind
        FORWARD_ONLY: plan.ProgramKind

    class RankUse:
        """A rank's share in a simulated pipeline."""
        @property
        def compute_seconds(self) -> float: ...
        @property
        def first_begin(self) -> float:
            """Of its first work."""
        @property
        def last_end(self) -> float:
            """Of its last work."""
        @property
        def peak_live(self) -> int:
            """Most live activations."""
        @property
        def idle_share(self) -> float:
            """Of the time between its first and its last work."""

    class Reshard:
        """What becomes of gathered parameters between two uses.

        Members:

          ALWAYS : Freed after every forward and backward.

          DEFAULT : Kept where the very next segment to run needs them.

          NEVER : Kept from forward to backward as well."""
        def __init__(self, value: int) -> None: ...
        def __repr__(self, /) -> str: ...
        @property
        def name(self) -> str: ...
        def __str__(self, /) -> str: ...
        __members__: dict[str, plan.Reshard]
        def __eq__(self, other: object, /) -> bool: ...
        def __ne__(self, other: object, /) -> bool: ...
        def __hash__(self, /) -> int: ...
        @property
        def value(self) -> int: ...
        def __int__(self, /) -> int: ...
        def __index__(self, /) -> int: ...
        ALWAYS: plan.Reshard
        DEFAULT: plan.Reshard
        NEVER: plan.Reshard

    class Schedule:
        """What each rank of a pipeline does with its stages, in order."""
        @property
        def rank_of_stage(self) -> list[int]: ...
        @property
        def num_microbatches(self) -> int: ...
        @property
        def num_stages(self) -> int: ...
        @property
        def num_ranks(self) -> int: ...
        @property
        def overlaps(self) -> bool:
            """Whether it runs forwards together with backwards."""
        def to_csv(self) -> str:
            """The schedule in torch's CSV format, a row per rank."""
        def forward_only(self) -> plan.Schedule:
            """The schedule without its backwards: validation."""
        def __eq__(self, arg0: object, /) -> bool: ...
        __hash__ = None  # type: ignore[assignment]

    class ScheduleFacts:
        """What one has to know of a schedule to choose it."""
        @property
        def name(self) -> str:
            """In torch's spelling."""
        @property
        def multi_stage(self) -> bool:
            """Whether it is made for several stages per rank."""
        @property
        def stages_per_rank(self) -> int:
            """The only number it takes; 0: any from 1 on."""
        @property
        def v_shaped(self) -> bool:
            """Whether rank r of p has stages r and 2 p - 1 - r, else r + i p."""
        @property
        def splits_backward(self) -> bool: ...
        @property
        def overlaps(self) -> bool:
            """Whether it runs forwards together with backwards."""
        @property
        def bounded_memory(self) -> bool:
            """Whether more microbatches do not mean more live activations."""
        def live_bound(self, *, num_ranks: int, stages_per_rank: int, num_microbatches: int, rank: int) -> int:
            """Most microbatches times stages of a rank that await their backward."""
        def bubble(self, *, num_ranks: int, stages_per_rank: int, num_microbatches: int) -> float | None:
            """The published idle share of a step where forward and both halves of backward take equally long; None for too few microbatches."""

    class SegmentShape:
        """Sizes of a link of the model's chain, per microbatch."""
        def __init__(self, *, name: str, groups: collections.abc.Sequence[int], forward_flops: int, recompute_flops: int, backward_flops: int, input_bytes: int, output_bytes: int, saved_bytes: int, forward_temporary_bytes: int, backward_temporary_bytes: int, recompute: bool, saves_outputs: bool=False, offload: bool=False, offload_bytes: int=0) -> None: ...
        @property
        def name(self) -> str: ...
        @property
        def groups(self) -> list[int]:
            """Indices of the groups it uses."""
        @property
        def forward_flops(self) -> int: ...
        @property
        def recompute_flops(self) -> int: ...
        @property
        def backward_flops(self) -> int: ...
        @property
        def input_bytes(self) -> int: ...
        @property
        def output_bytes(self) -> int: ...
        @property
        def saved_bytes(self) -> int: ...
        @property
        def forward_temporary_bytes(self) -> int: ...
        @property
        def backward_temporary_bytes(self) -> int: ...
        @property
        def recompute(self) -> bool: ...
        @property
        def saves_outputs(self) -> bool:
            """Whether what backward needs includes the outputs."""
        @property
        def offload(self) -> bool:
            """Whether what backward needs may wait in host memory."""
        @property
        def offload_bytes(self) -> int:
            """What then moves, inputs included."""

    class Simulation:
        """Predicted times of a program."""
        @property
        def seconds(self) -> float: ...
        @property
        def compute_seconds(self) -> float: ...
        @property
        def exposed_seconds(self) -> float:
            """Time that compute waited for communication."""
        @property
        def spans(self) -> list[tuple[float, float]]:
            """Begin and end of each action in seconds; of a start: of its transfer."""

    class StageCost:
        """Of a stage on one microbatch."""
        def __init__(self, *, forward_seconds: float, backward_seconds: float, backward_input_seconds: float, backward_weight_seconds: float, output_bytes: float=0.0) -> None: ...

    class StepShape:
        """What a planner knows of a rank's model."""
        def __init__(self, *, segments: collections.abc.Sequence[plan.SegmentShape], groups: collections.abc.Sequence[plan.GroupShape], num_microbatches: int, constant_bytes: int=0) -> None: ...
        @property
        def segments(self) -> list[plan.SegmentShape]: ...
        @property
        def groups(self) -> list[plan.GroupShape]: ...
        @property
        def num_microbatches(self) -> int: ...
        @property
        def constant_bytes(self) -> int: ...
        @property
        def host_is_device(self) -> bool:
            """Whether what is offloaded stays where it is, as on a CPU."""
        def with_transport_buffers(self) -> plan.StepShape:
            """The shape where gathers and reductions of every sharded group receive all pieces in a buffer of their own, as over Gloo."""
        def with_optimizer_bytes(self, optimizer_bytes: int) -> plan.StepShape:
            """The shape with this many bytes of optimizer states per element."""

    class Traffic:
        """Calls of a collective and their bytes."""
        @property
        def calls(self) -> int: ...
        @property
        def bytes(self) -> int:
            """Of the larger side of each call."""
    @staticmethod
    def add_transfers(schedule: plan.Schedule, *, depth: int=1) -> list[list[plan.Action]]:
        """The programs of all ranks of a pipeline, with the messages between stages. Receives start `depth` works ahead of the one that needs them."""
    @staticmethod
    def all_schedules() -> list[plan.ScheduleFacts]:
        """Every schedule that make_schedule knows."""
    @staticmethod
    def build_forward_program(shape: plan.StepShape, *, prefetch_depth: int) -> list[plan.Action]:
        """The actions of a validation step."""
    @staticmethod
    def build_step_program(shape: plan.StepShape, *, prefetch_depth: int, reduce_depth: int, optimizer: plan.OptimizerTiming, offload_depth: int=1) -> list[plan.Action]:
        """The actions of one training step of a rank. Depths are the compute actions that a gather starts ahead and that run during a reduction and during a copy to or from host memory."""
    @staticmethod
    def draw_timeline(programs: collections.abc.Sequence[collections.abc.Sequence[plan.Action]], spans: collections.abc.Sequence[collections.abc.Sequence[tuple[float, float]]], *, title: str) -> str:
        """An SVG picture of the programs of all ranks. spans: begin and end of each rank's actions in seconds, predicted or measured."""
    @staticmethod
    def estimate_memory(program: collections.abc.Sequence[plan.Action], shape: plan.StepShape) -> plan.MemoryEstimate:
        """Predict the tensor bytes of a rank that runs the program."""
    @staticmethod
    def find_schedule(name: str) -> plan.ScheduleFacts:
        """The schedule of a name in any case; ValueError names those that exist."""
    @staticmethod
    def idle_share(programs: collections.abc.Sequence[collections.abc.Sequence[plan.Action]], spans: collections.abc.Sequence[collections.abc.Sequence[tuple[float, float]]]) -> float:
        """The share of the time of all ranks, from 0 to the last end, in which they run no compute action and no optimizer."""
    @staticmethod
    def make_schedule(name: str, *, num_ranks: int, stages_per_rank: int, num_microbatches: int) -> plan.Schedule:
        """The order of a named schedule."""
    @staticmethod
    def parse_schedule_csv(text: str) -> plan.Schedule:
        """The schedule of a CSV text in torch's format; ValueError names row and column."""
    @staticmethod
    def simulate(programs: collections.abc.Sequence[collections.abc.Sequence[plan.Action]], shapes: collections.abc.Sequence[plan.StepShape], *, flops_per_second: float, memory_bytes_per_second: float, links: collections.abc.Mapping[str, tuple[float, float]]) -> list[plan.Simulation]:
        """Predict the times of the programs of all ranks of a pipeline, or of the one rank without. links: (bytes per second, latency in seconds) of each mesh axis."""
    @staticmethod
    def simulate_pipeline(programs: collections.abc.Sequence[collections.abc.Sequence[plan.Action]], stages: collections.abc.Sequence[plan.StageCost], *, link: tuple[float, float] | None=None) -> plan.PipelineSimulation:
        """Predict the time of the programs of all ranks. link: bytes per second and latency in seconds of a message; None: messages take no time."""
    @staticmethod
    def traffic(program: collections.abc.Sequence[plan.Action], shape: plan.StepShape, *, loss_ranks: int) -> dict[tuple[str, str], plan.Traffic]:
        """Calls and bytes of a program by (mesh axis, verb), exactly. loss_ranks is the size of the axis "loss"."""
    @staticmethod
    def verify(program: collections.abc.Sequence[plan.Action], shape: plan.StepShape, kind: plan.ProgramKind) -> None:
        """Raise ValueError, naming the first wrong action, unless the program computes the step and leaves nothing behind."""
    @staticmethod
    def verify_agreement(programs: collections.abc.Sequence[collections.abc.Sequence[plan.Action]]) -> None:
        """Raise ValueError unless all ranks start the same communications in one order."""
    @staticmethod
    def verify_pipeline(programs: collections.abc.Sequence[collections.abc.Sequence[plan.Action]], *, rank_of_stage: collections.abc.Sequence[int], num_microbatches: int, kind: plan.ProgramKind, live_bounds: collections.abc.Sequence[int]=[]) -> None:
        """Raise ValueError, naming rank and action, unless the programs of all ranks do the work of the stages together, without deadlock. live_bounds: most live activations by rank; empty: no bound."""
    @staticmethod
    def with_stages(program: collections.abc.Sequence[plan.Action], shape: plan.StepShape) -> list[plan.Action]:
        """A rank's program with the pipeline stage of each compute action."""

class storage:

    class FoundCheckpoint:
        """A folder named step-N."""
        @property
        def step(self) -> int: ...
        @property
        def path(self) -> str: ...
        @property
        def problem(self) -> str:
            """Why it cannot be used; empty when nothing is wrong."""
        @property
        def unreadable(self) -> bool:
            """The problem is a refusal of the system, and tells nothing of
            what the checkpoint holds."""
        @property
        def manifest(self) -> str | None:
            """JSON text; None when there is a problem."""

    class HashedFile:
        """A new file, hashed while it is written."""
        def __init__(self, path: str, *, num_threads: int=1) -> None:
            """Raises OSError, also if there is one."""
        @property
        def num_bytes(self) -> int:
            """Written so far."""
        def write(self, data: bytes) -> None:
            """Append."""
        def write_tensor(self, data: torch.Tensor) -> int:
            """Append the data of a contiguous CPU tensor; returns their CRC-32."""
        def finish(self) -> tuple[int, str, str]:
            """Make the file durable; returns its size in bytes, SHA-256 and those of its
            blocks, as a manifest has them."""

    class SafetensorsReader:
        """A safetensors file, its header checked strictly."""
        def __init__(self, path: str, *, blocks: str='', num_threads: int=1) -> None:
            """blocks: as VerifiedFile. Raises ValueError for a bad file, OSError if it
            cannot be read."""
        @property
        def entries(self) -> dict[typing.Any, typing.Any]:
            """Tensors by name, in file order: (dtype, shape)."""
        @property
        def metadata(self) -> dict[str, str]:
            """Free strings of the header."""
        def read_box(self, name: str, out: torch.Tensor, *, offset: collections.abc.Sequence[int], size: collections.abc.Sequence[int], out_offset: collections.abc.Sequence[int]) -> None:
            """Copy a box of a tensor into out (contiguous, CPU, same dtype), there at
            out_offset."""

    class SafetensorsWriter:
        """Streams tensors into a new safetensors file."""
        def __init__(self, path: str, tensors: collections.abc.Sequence[tuple[str, torch.dtype, collections.abc.Sequence[int]]], *, metadata: collections.abc.Mapping[str, str], num_threads: int=1) -> None:
            """tensors: (name, dtype, shape) in the order of the appends to come."""
        def append(self, name: str, data: torch.Tensor) -> None:
            """The data of the next tensor (contiguous, CPU)."""
        def finish(self) -> tuple[int, str, str]:
            """Make the file durable; returns its size in bytes, SHA-256 and those of its
            blocks, as a manifest has them."""

    class VerifiedFile:
        """A file, compared with the hashes of its blocks while it is read."""
        def __init__(self, path: str, *, blocks: str, num_threads: int) -> None:
            """blocks: as finish() of what wrote it returns them; an empty text: nothing
            is compared. Raises ValueError for another number of blocks, OSError."""
        @property
        def size_bytes(self) -> int: ...
        def read(self, offset: int, size: int) -> bytes:
            """Bytes of the file. ValueError if they are damaged or not there."""
        def read_into(self, offset: int, out: torch.Tensor) -> None:
            """The same, into a contiguous CPU tensor."""
    @staticmethod
    def check_exact_cover(name: str, shape: collections.abc.Sequence[int], boxes: collections.abc.Sequence[tuple[collections.abc.Sequence[int], collections.abc.Sequence[int]]]) -> None:
        """Raises ValueError that names the tensor unless each element of the shape lies
        in exactly one box; boxes are (offset, size)."""
    @staticmethod
    def check_plain_name(name: str, *, where: str) -> None:
        """ValueError unless name is one file name without any way out of its folder."""
    @staticmethod
    def clean_up(folder: str) -> tuple[list[str], list[str]]:
        """End what killed processes left; returns the names that were deleted, and the
        new names of checkpoints that had just been replaced."""
    @staticmethod
    def commit(folder: str, *, manifest: str, fault_hook: collections.abc.Callable[[str], None] | None=None) -> tuple[str, str]:
        """Publish a staging folder as step-N, durable; returns its path, and the path
        that what was there before now has, or an empty text."""
    @staticmethod
    def create_staging(folder: str, *, step: int, id: str) -> str:
        """Create the folder that all ranks write a checkpoint into."""
    @staticmethod
    def discard_staging(folder: str, *, step: int, id: str) -> None:
        """End a save that failed, as clean_up does for one that was killed."""
    @staticmethod
    def dtype_name(dtype: torch.dtype) -> str:
        """Name of a torch dtype in safetensors, e.g. 'BF16'."""
    @staticmethod
    def inspect_checkpoint(path: str) -> storage.FoundCheckpoint:
        """The checkpoint in this folder, whatever its name."""
    @staticmethod
    def list_checkpoints(folder: str) -> tuple[list[storage.FoundCheckpoint], list[str]]:
        """Checkpoints (those with a problem first, then newest first) and the names with
        'step-' in them that are none."""
    @staticmethod
    def purge(folder: str, *, keep_latest: int, head: str, fault_hook: collections.abc.Callable[[str], None] | None=None) -> tuple[list[int], list[str]]:
        """Delete old checkpoints in the line of ancestors of head; returns their steps,
        and the paths of those that stay because something else lies in them."""
    @staticmethod
    def stream_copy(copies: collections.abc.Sequence[tuple[torch.Tensor, torch.Tensor]], *, num_threads: int) -> None:
        """Copy the second tensor of each pair into the first one (contiguous, CPU, same
        dtype and bytes) past the caches: for much that is not read soon."""
    @staticmethod
    def verify_files(path: str, *, manifest: str, part: int, num_parts: int) -> None:
        """Compare size and SHA-256 of every num_parts-th file; ValueError names the first
        that differs."""

class train:

    class Evaluation:
        """Loss of one batch, without gradients."""
        @property
        def loss_sum(self) -> torch.Tensor: ...
        @property
        def num_tokens(self) -> torch.Tensor: ...

    class Step:
        """The hot training step."""
        def __init__(self, applied: parallel.Applied, optimizer: optim.Optimizer, *, loss_axis: collectives.Group, max_norm: float) -> None: ...
        def run(self, microbatches: collections.abc.Sequence[collections.abc.Mapping[str, torch.Tensor]], *, learning_rate: float, step: int) -> train.StepResult:
            """One optimizer step over this rank's microbatches, dicts of named tensors with 'input' and 'labels'. `step` counts from 1."""
        def evaluate(self, batch: collections.abc.Mapping[str, torch.Tensor]) -> train.Evaluation:
            """Loss of one batch without gradients; all ranks call it together."""
        def record_times(self, on: bool) -> None:
            """Whether run() records when its actions begin and end."""
        @property
        def times(self) -> list[tuple[float, float]]:
            """Begin and end of each training action of the last recorded run, by the host's clock (seconds of time.monotonic()); of a start: until its Wait has ended. RuntimeError if there was none."""

    class StepResult:
        """0-dim tensors; reading one waits for the device."""
        @property
        def loss(self) -> torch.Tensor: ...
        @property
        def grad_norm(self) -> torch.Tensor: ...
        @property
        def num_tokens(self) -> torch.Tensor: ...
        @property
        def local_loss(self) -> torch.Tensor: ...
        @property
        def local_tokens(self) -> torch.Tensor: ...
        @property
        def finite(self) -> torch.Tensor: ...
