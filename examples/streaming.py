"""Stream several answers at once with asyncio; the engine runs them together, step by step.

    python examples/streaming.py [MODEL]
"""

from __future__ import annotations

import asyncio
import sys

from autodeploy import LLM, SamplingParams

QUESTIONS = ["Why is the sky blue?", "What is a prime number?", "Name three colours."]


async def answer(llm: LLM, place: int, question: str) -> str:
    text = ""
    params = SamplingParams(max_tokens=24, temperature=0.0)
    async for output in llm.chat_async([{"role": "user", "content": question}], params):
        text += output.outputs[0].delta
        print(f"[{place}] {output.outputs[0].delta!r}")
    return text


async def main(model: str) -> None:
    with LLM(model, max_seq_len=512) as llm:
        answers = await asyncio.gather(*(answer(llm, place, text) for place, text in enumerate(QUESTIONS)))
    for question, text in zip(QUESTIONS, answers, strict=True):
        print(f"{question}\n    {text}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "smollm2"))
