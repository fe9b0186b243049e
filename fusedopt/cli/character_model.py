"""A character-level language model with its backward pass by hand, and the English text that it learns.

One text for NumPy and CuPy: everything goes through `fusedopt.array_module()`. Nothing here knows of optimizers.
"""

from __future__ import annotations

from pydoc_data.topics import topics
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

import fusedopt

Array: TypeAlias = Any  # numpy.ndarray or cupy.ndarray: the model does not care which

CONTEXT = 16  # characters that the model sees before it guesses the next one
EMBEDDING = 16  # numbers a character
TEMPERATURE = 0.7  # below 1, a sample keeps to the likelier characters


def english_text() -> str:
    """The language reference as `help()` carries it: each paragraph once, as one line of ASCII, without the tables.

    Topics repeat one another's paragraphs; kept, they would put training text into the held-out part.
    """
    paragraphs = (" ".join(paragraph.split()) for topic in topics.values() for paragraph in topic.split("\n\n"))
    text = "\n".join(dict.fromkeys(paragraph for paragraph in paragraphs if paragraph and paragraph[0] not in "+|="))
    text = text.translate(str.maketrans("“”‘’–—", "\"\"''--"))
    return "".join(character for character in text if character == "\n" or " " <= character <= "~")


class Text:
    """English text as character numbers; the last tenth is held out from training."""

    def __init__(self) -> None:
        xp = fusedopt.array_module()
        text = english_text()
        self.vocabulary = "".join(sorted(set(text)))
        tokens = xp.asarray(self.encode(text))
        cut = len(text) * 9 // 10
        self.training, self.held_out = tokens[:cut], tokens[cut:]

    def encode(self, text: str) -> Array:
        return np.array([self.vocabulary.index(character) for character in text])

    def training_batch(self, seed: int, step: int, size: int = 256) -> tuple[Array, Array]:
        """Contexts (size, CONTEXT) and their next characters (size,): always the same for one seed and step."""
        return _windows(self.training, np.random.default_rng((seed, step)), size)

    def held_out_batch(self, size: int = 2048) -> tuple[Array, Array]:
        """Always the same windows, so that losses of different steps compare."""
        return _windows(self.held_out, np.random.default_rng(0), size)


def _windows(tokens: Array, rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    xp = fusedopt.array_module()
    starts = xp.asarray(rng.integers(0, len(tokens) - CONTEXT, size))
    windows = tokens[starts[:, None] + xp.arange(CONTEXT + 1)]
    return windows[:, :-1], windows[:, -1]


class Activations(NamedTuple):
    """What the backward pass needs of the forward pass."""

    contexts: Array  # (batch, CONTEXT), character numbers
    embedded: Array  # (batch, CONTEXT * EMBEDDING)
    hidden: Array  # (batch, hidden)
    log_probabilities: Array  # (batch, vocabulary)


class CharacterModel:
    """Embeddings of the last CONTEXT characters, one hidden layer of rectifiers, a softmax over the next character.

    He's initialisation, but the output layer starts ten times smaller: the first guess is nearly uniform, and the
    loss starts at the logarithm of the vocabulary's size.
    """

    def __init__(self, vocabulary: int, seed: int, hidden: int = 384, dtype: DTypeLike = np.float32) -> None:
        xp = fusedopt.array_module()
        rng = np.random.default_rng(seed)
        inputs = CONTEXT * EMBEDDING

        def normal(rows: int, columns: int, deviation: float) -> Array:
            return xp.asarray((deviation * rng.standard_normal((rows, columns))).astype(dtype))

        self.embedding = fusedopt.Parameter(normal(vocabulary, EMBEDDING, 1.0), name="embedding")
        self.hidden = fusedopt.Parameter(normal(inputs, hidden, (2 / inputs) ** 0.5), name="hidden")
        self.hidden_bias = fusedopt.Parameter(xp.zeros(hidden, dtype), name="hidden_bias")
        self.output = fusedopt.Parameter(normal(hidden, vocabulary, 0.1 / hidden**0.5), name="output")
        self.output_bias = fusedopt.Parameter(xp.zeros(vocabulary, dtype), name="output_bias")
        self.parameters = [self.embedding, self.hidden, self.hidden_bias, self.output, self.output_bias]

    def forward(self, contexts: Array) -> Activations:
        xp = fusedopt.array_module()
        embedded = self.embedding.data[contexts].reshape(len(contexts), -1)
        hidden = xp.maximum(embedded @ self.hidden.data + self.hidden_bias.data, 0)
        logits = hidden @ self.output.data + self.output_bias.data
        logits -= logits.max(axis=1, keepdims=True)  # no exponential overflows, and the softmax stays the same
        log_probabilities = logits - xp.log(xp.exp(logits).sum(axis=1, keepdims=True))
        return Activations(contexts, embedded, hidden, log_probabilities)

    def backward(self, activations: Activations, targets: Array) -> None:
        """Sets every parameter's `grad` to the gradient of the mean loss."""
        xp = fusedopt.array_module()
        contexts, embedded, hidden, log_probabilities = activations
        delta = xp.exp(log_probabilities)
        delta[xp.arange(len(targets)), targets] -= 1
        delta /= len(targets)
        self.output.grad = hidden.T @ delta
        self.output_bias.grad = delta.sum(axis=0)

        delta = (delta @ self.output.data.T) * (hidden > 0)
        self.hidden.grad = embedded.T @ delta
        self.hidden_bias.grad = delta.sum(axis=0)

        # A character's embedding collects from every place where it stood. As a product with a one-hot matrix that
        # is fast on both kinds of array, and always adds in the same order, which atomic additions do not.
        delta = (delta @ self.hidden.data.T).reshape(-1, EMBEDDING)
        one_hot = contexts.reshape(-1, 1) == xp.arange(len(self.embedding.data))
        self.embedding.grad = one_hot.astype(delta.dtype).T @ delta

    def loss(self, contexts: Array, targets: Array) -> float:
        """Mean cross entropy in nats a character."""
        xp = fusedopt.array_module()
        log_probabilities = self.forward(contexts).log_probabilities
        return -float(log_probabilities[xp.arange(len(targets)), targets].mean())

    def sample(self, text: Text, prompt: str, length: int, seed: int) -> str:
        """`prompt` (at least CONTEXT characters) and `length` more, drawn from the model's guesses."""
        xp = fusedopt.array_module()
        rng = np.random.default_rng(seed)
        tokens = list(text.encode(prompt))
        for _ in range(length):
            log_probabilities = self.forward(xp.asarray(tokens[-CONTEXT:])[None]).log_probabilities[0]
            guess = xp.exp(log_probabilities / TEMPERATURE)
            cumulative = guess.astype(np.float64).cumsum()
            tokens.append(int((cumulative < rng.random() * cumulative[-1]).sum()))
        return "".join(text.vocabulary[token] for token in tokens)
