"""Check that this computer runs the exported policy as it was when it was exported: `python verify.py`.

It needs NumPy and onnxruntime, and the files beside it: policy.json and the model. Exit status 0: all is as it should
be; 1: something is not, and the one line printed says what.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path


def failure(folder: Path, tolerance: float) -> str | None:
    """Return what is wrong with an exported policy, None if nothing is.

    Args:
        folder: with policy.json and the model.
        tolerance: largest difference of an action, in units of the action range.
    """
    import numpy as np
    import onnxruntime

    description = json.loads((folder / "policy.json").read_text(encoding="utf-8"))
    model = (folder / description["artifact"]).read_bytes()
    if hashlib.sha256(model).hexdigest() != description["artifact_sha256"]:
        return f"{description['artifact']} is not the file that was exported: its SHA-256 is another"
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    for what, values in (("input", session.get_inputs()), ("output", session.get_outputs()[:1])):
        names = [value.name for value in values]
        if names != [description[what]["name"]]:
            return f"the model's {what} is {names}, not {description[what]['name']}"
    observations = np.asarray(description["golden"]["observations"], np.float32)
    wanted = np.asarray(description["golden"]["actions"], np.float32)
    for batch in (1, len(observations)):
        actions = np.concatenate(
            [
                session.run([description["output"]["name"]], {description["input"]["name"]: part})[0]
                for part in np.split(observations, range(batch, len(observations), batch))
            ]
        )
        if actions.shape != wanted.shape:
            return f"at batch {batch} the actions have shape {actions.shape}, not {wanted.shape}"
        difference = float(np.max(np.abs(actions - wanted) / np.asarray(description["action_range"])))
        if not difference <= tolerance:
            return f"at batch {batch} actions differ by {difference:.2e} of their range, more than {tolerance:.0e}"
    return None


def main() -> int:
    """Check, print one line, and return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tolerance", type=float, default=1e-5, help="largest difference, of the action range")
    tolerance = parser.parse_args().tolerance
    folder = Path(__file__).resolve().parent
    try:
        wrong = failure(folder, tolerance)
    except Exception as error:  # whatever it is, the policy cannot be trusted to run here
        wrong = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    if wrong is not None:
        print(f"FAILED: {wrong}")
        return 1
    print("passed: the golden pairs agree, one by one and all at once")
    return 0


if __name__ == "__main__":
    sys.exit(main())
