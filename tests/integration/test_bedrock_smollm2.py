"""The real small model, from its package: it is read rightly, and answers."""

from pathlib import Path

from bedrock.conversations import Message
from bedrock.text import Limits
from local.bedrock.text_model import TextModel

CACHE = Path(__file__).resolve().parents[2] / ".quench" / "cache"


def test_smollm2_knows_the_capital_of_france(tmp_path: Path) -> None:
    model = TextModel("smollm2", CACHE, tmp_path / "generation.log")
    try:
        answer = model.answer(
            None,
            None,
            (Message("user", "What is the capital of France?"),),
            Limits(max_tokens=24, temperature=0.0),
        )
    finally:
        model.stop()
    assert "Paris" in answer.text
    assert answer.stop_reason == "end_turn"
