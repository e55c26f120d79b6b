"""What the GPU benchmark trains: shapes of models, tokens per step, and the arithmetic they cost."""

from dataclasses import asdict, dataclass

LONGEST = 8192
EAGER = 1.5  # activations kept by modules run one by one, as a multiple of those of a fused layer
USABLE = 0.8  # of the device's memory


@dataclass(frozen=True)
class Shape:
    """An architecture's sizes; weights are drawn, so nothing else of the model matters."""

    model_type: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    rope_theta: float

    def config(self) -> dict:
        return {**asdict(self), "max_position_embeddings": 2 * LONGEST, "pad_token_id": 0, "bos_token_id": 1} | {
            "eos_token_id": 1
        }

    @property
    def query_width(self) -> int:
        return self.num_attention_heads * self.head_dim

    @property
    def key_width(self) -> int:
        return self.num_key_value_heads * self.head_dim

    def linears(self) -> list[tuple[int, int]]:
        """Inputs and outputs of the seven projections of a layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        attention = [(hidden, self.query_width), (hidden, self.key_width), (hidden, self.key_width)]
        return [*attention, (self.query_width, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]

    @property
    def body(self) -> int:
        return self.num_hidden_layers * sum(inputs * outputs for inputs, outputs in self.linears())

    @property
    def head(self) -> int:
        return self.hidden_size * self.vocab_size

    @property
    def parameters(self) -> int:
        return self.body + self.head * (1 if self.tie_word_embeddings else 2)

    def adapter(self, rank: int) -> int:
        return self.num_hidden_layers * rank * sum(map(sum, self.linears()))

    def flops_per_token(self, length: int, rank: int, scored: float) -> float:
        """LoRA with a frozen head: 4 N_b + 4 s N_h + 6 n_l + 7 T q L; recomputed layers are not counted as work."""
        attention = 7 * length * self.query_width * self.num_hidden_layers
        return 4 * self.body + 4 * scored * self.head + 6 * self.adapter(rank) + attention

    def full_flops_per_token(self, length: int, scored: float) -> float:
        """Full tuning: 6 N_b + 6 s N_h + 7 T q L."""
        attention = 7 * length * self.query_width * self.num_hidden_layers
        return 6 * self.body + 6 * scored * self.head + attention

    def activation_bytes(self) -> float:
        """Per token, in bf16, without recomputation."""
        widths = 3 * self.hidden_size + 2 * (self.query_width + self.key_width + self.intermediate_size)
        return EAGER * 2 * widths * self.num_hidden_layers


SHAPES = {
    "Qwen3-0.6B": Shape("qwen3", 1024, 3072, 28, 16, 8, 128, 151936, True, 1e6),
    "Llama-3.2-1B": Shape("llama", 2048, 8192, 16, 32, 8, 64, 128256, True, 5e5),
    "Qwen3-4B": Shape("qwen3", 2560, 9728, 36, 32, 8, 128, 151936, True, 1e6),
    "Llama-3.1-8B": Shape("llama", 4096, 14336, 32, 32, 8, 128, 128256, False, 5e5),
}
TINY = {
    "tiny-qwen3": Shape("qwen3", 64, 96, 2, 4, 2, 16, 512, True, 1e6),
    "tiny-llama": Shape("llama", 64, 96, 2, 4, 2, 16, 512, False, 5e5),
}


def tokens_per_step(shape: Shape, lengths: list[int], most: int, memory: int | None) -> int:
    """The longest length times a power of two: at most `most`, and with activations that fit beside the weights.

    So many tokens are whole documents of every length, and halves of them are as well.
    """
    longest = max(lengths)
    fits = most
    if memory is not None:
        fits = min(most, int((USABLE * memory - 2 * shape.parameters) / shape.activation_bytes()))
    return longest << max(0, (max(0, fits) // longest).bit_length() - 1)
