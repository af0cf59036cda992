def device_count() -> int: ...
def shift_linear_workspace(rows: int, inputs: int) -> int: ...
def shift_linear(
    x: int,
    rows: int,
    inputs: int,
    panels: int,
    scale: int,
    outputs: int,
    bias: int,
    out: int,
    workspace: int,
    format: str,
    activation: str,
    stream: int,
) -> None: ...
def binary_linear_attention_workspace(
    batch: int, heads: int, tokens: int, bits: int, values: int
) -> int: ...
def binary_linear_attention(
    q: int,
    k: int,
    v: int,
    batch: int,
    heads: int,
    tokens: int,
    bits: int,
    values: int,
    signed: bool,
    taps: int,
    out: int,
    workspace: int,
    stream: int,
) -> None: ...
def additive_token_mixer_workspace(batch: int, channels: int, height: int, width: int) -> int: ...
def packed_mixer_size(channels: int) -> int: ...
def additive_token_mixer(
    x: int,
    batch: int,
    channels: int,
    height: int,
    width: int,
    packed: int,
    out: int,
    workspace: int,
    layout: str,
    stream: int,
) -> None: ...
