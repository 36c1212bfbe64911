"""/openapi.json of a multilabel model; that of others is asked by schemathesis, in test_server.py."""

from io import BytesIO

import numpy as np
import pytest
from jsonschema import validate
from PIL import Image

from tlkit.data.preprocess import Preprocessing
from tlkit.deploy.predict.predictor import Answer, Predictor
from tlkit.deploy.serve.limits import Limits

pytest.importorskip("fastapi")


def test_answers_of_a_multilabel_model_are_as_described_and_go_by_the_threshold_of_the_query() -> None:
    from starlette.testclient import TestClient

    from tlkit.deploy.serve.app import Service, create_app

    row = np.array([[0.9, 0.6, 0.2]])
    spec = Preprocessing(8, "stretch", 1.0, "bilinear", (0.0,) * 3, (1.0,) * 3)
    predictor = Predictor("pets", ("cat", "dog", "owl"), spec, lambda images: Answer(row.repeat(len(images), 0)), None, (0.5, 0.7, 0.1), "")
    image = BytesIO()
    Image.new("RGB", (8, 6)).save(image, "PNG")
    with TestClient(create_app(Service(predictor, Limits(), 8, 0.0, None))) as client:
        described = client.get("/openapi.json").json()["paths"]["/predict"]["post"]
        for query, expected in (("", ["cat", "owl"]), ("?threshold=0.5", ["cat", "dog"])):
            answer = client.post(f"/predict{query}", content=image.getvalue(), headers={"Content-Type": "image/png"})
            assert answer.status_code == 200, answer.text
            validate(answer.json(), described["responses"]["200"]["content"]["application/json"]["schema"])
            assert [found["class"] for found in answer.json()["predictions"][0]["classes"]] == expected
