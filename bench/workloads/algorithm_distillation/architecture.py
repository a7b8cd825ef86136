"""The agent: a small Llama over the words of a history, with grouped queries and rotary positions."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from kvcompress.bench.workloads.algorithm_distillation.darkroom import CELLS, SIZE
from kvcompress.bench.workloads.algorithm_distillation.vocabulary import (
    BOS_ID,
    FIRST_CELL,
    MAX_POSITIONS,
    PAD_ID,
    VOCABULARY_SIZE,
    build_tokenizer,
)

_EMBEDDING = "model.embed_tokens"


def build_config() -> LlamaConfig:
    """Return the configuration: 4 layers, width 64, 4 query and 2 kv heads of dimension 32."""
    return LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        tie_word_embeddings=False,
        pad_token_id=PAD_ID,
        bos_token_id=BOS_ID,
        eos_token_id=None,
    )


class GridEmbedding(nn.Module):
    """Embeddings in training: a cell's is the sum of one for its row and one for its column.

    So what is learned of the training goals' rows and columns holds for a goal cell that was held out. The model
    that is saved has the sums as an ordinary table.
    """

    def __init__(self, width: int) -> None:
        """Draw the embeddings.

        Args:
            width: dimension of an embedding.
        """
        super().__init__()
        self.words = nn.Parameter(torch.randn(VOCABULARY_SIZE - CELLS, width) * 0.02)
        self.rows = nn.Parameter(torch.randn(SIZE, width) * 0.02)
        self.columns = nn.Parameter(torch.randn(SIZE, width) * 0.02)

    def table(self) -> Tensor:
        """Return the embeddings of all words, [vocabulary, width]."""
        cells = (self.rows[:, None] + self.columns[None]).flatten(0, 1)
        return torch.cat((self.words[:FIRST_CELL], cells, self.words[FIRST_CELL:]))

    def forward(self, ids: Tensor) -> Tensor:
        """Return the embeddings of ids: [batch, seq_len] -> [batch, seq_len, width]."""
        return F.embedding(ids, self.table())


def build_model(seed: int) -> LlamaForCausalLM:
    """Return an untrained model in float32 whose embeddings are a `GridEmbedding`.

    Args:
        seed: seed of torch's global generator, from which the weights are drawn.

    Returns:
        The model, in training mode.
    """
    torch.manual_seed(seed)
    config = build_config()
    model = LlamaForCausalLM(config)
    model.set_input_embeddings(GridEmbedding(config.hidden_size))
    model.train()
    return model


def plain_model(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a copy of a model in training with an ordinary table of embeddings, in evaluation mode."""
    embedding = model.get_input_embeddings()
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(_EMBEDDING)}
    if isinstance(embedding, GridEmbedding):
        state[f"{_EMBEDDING}.weight"] = embedding.table().detach()
    plain = LlamaForCausalLM(model.config)
    plain.load_state_dict(state)
    plain.eval()
    return plain


def save_model(model: LlamaForCausalLM, folder: Path) -> None:
    """Write configuration, weights (float16) and tokenizer of a model in training to a folder.

    Args:
        model: from `build_model`; it is left as it is.
        folder: made if it is not there.
    """
    plain_model(model).half().save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
