"""The script in an artifact: how to use it with only onnxruntime, numpy and Pillow, in at most 17 lines."""

from math import floor

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.export.artifact import MEAN_IMAGE
from tlkit.models.inference.trust import NOT_SURE, UNLIKE, Trust

CONSUMER = "predict.py"
_MODES = {1: "L", 3: "RGB"}

_SCRIPT = """\
# python predict.py IMAGE...   with: pip install onnxruntime numpy pillow
import json, os, sys, numpy as np; os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1"); import onnxruntime
from PIL import Image, ImageOps
sys.stdout.reconfigure(errors="backslashreplace"); sys.excepthook = lambda kind, error, _: sys.exit(f"{{kind.__name__}}: {{error}}")
if not os.path.exists(sys.path[0] + "/artifact.json"): sys.exit("predict.py has no artifact.json beside it: copy the whole folder.")
facts = json.load(open(sys.path[0] + "/artifact.json", encoding="utf-8"))
session = onnxruntime.InferenceSession(sys.path[0] + "/" + facts["network"])
for file in sys.argv[1:] or sys.exit("usage: python predict.py IMAGE..."):
    image = ImageOps.exif_transpose(Image.open(file)).convert("{mode}")
{fit}
{images}
    probabilities{unpacked} = (found[0] for found in session.run([{names}], {{"pictures": images}}))
{answer}{note})
"""
# The numbers are those of Preprocessing.fit, rounded as it rounds.
_RESIZE = {
    "stretch": "    image = image.resize(({side}, {side}), Image.Resampling.{filter})",
    "crop": """\
    short = min(image.size)
    image = image.resize([{side} if n == short else int({side} * n / short) for n in image.size], Image.Resampling.{filter})""",
    "pad": """\
    ratio = max(image.size) / {side}
    image = image.resize([max(1, round(n / ratio)) for n in image.size], Image.Resampling.{filter})
    ground, image = image, Image.new("{mode}", ({size}, {size}), {fill})
    image.paste(ground, (({size} - ground.width) // 2, ({size} - ground.height) // 2))""",
}
_CROP = """
    left, top = (round((n - {size}) / 2) for n in image.size)
    image = image.crop((left, top, left + {size}, top + {size}))"""
_RAW = "    images = np.asarray(image).reshape(1, {size}, {size}, {channels})"
_NORMALIZED = """\
    images = (np.asarray(image, np.float32).reshape(1, {size}, {size}, {channels}) / 255 - {mean}) / np.float32({std})
    images = np.ascontiguousarray(images.transpose(0, 3, 1, 2))"""
_BEST = """    print(file, facts["classes"][probabilities.argmax()], round(float(probabilities.max()), 4)"""
_BEST_OR_NONE = f"""    sure = probabilities.max() >= facts["abstain"]["threshold"]
    print(file, facts["classes"][probabilities.argmax()] if sure else "{NOT_SURE}", round(float(probabilities.max()), 4)"""
_CALLED = """    print(file, [c for c, p, t in zip(facts["classes"], probabilities, facts["thresholds"]) if p > t]"""
_NOTE = f', "{UNLIKE}" if unknown[0] > facts["unknown"]["threshold"] else ""'


def consumer_script(spec: Preprocessing, *, raw: bool, multilabel: bool, trust: Trust) -> str | None:
    """Return the script, or None for images that Pillow has no mode for: those with other than 1 or 3 channels.

    It reads 8-bit images without transparency as the model does; tlkit's own runtime also handles 16 bits and transparency.
    """
    if spec.channels not in _MODES:
        return None
    fill = tuple(round(255 * value) for value in spec.mean)
    numbers = {
        "mode": _MODES[spec.channels],
        "size": spec.image_size,
        "side": floor(spec.image_size / spec.crop_pct),
        "filter": spec.interpolation.upper(),
        "fill": fill if spec.channels > 1 else fill[0],
        "channels": spec.channels,
        "mean": f"np.float32({list(spec.mean)})" if spec.mean_picture is None else f'np.load(sys.path[0] + "/{MEAN_IMAGE}")',
        "std": list(spec.std),
    }
    cropped = spec.resize != "pad" and (spec.resize == "crop" or numbers["side"] != spec.image_size)
    return _SCRIPT.format(
        **numbers,
        fit=(_RESIZE[spec.resize] + (_CROP if cropped else "")).format(**numbers),
        images=(_RAW if raw else _NORMALIZED).format(**numbers),
        answer=_CALLED if multilabel else _BEST_OR_NONE if trust.abstain else _BEST,
        names='"probabilities", "unknown"' if trust.unknown else '"probabilities"',
        unpacked=", unknown" if trust.unknown else ",",
        note=_NOTE if trust.unknown else "",
    )
