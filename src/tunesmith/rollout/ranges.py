"""What each setting of sampling may be, in requests, recipes and conversations alike."""

from typing import Annotated

from pydantic import AfterValidator, Field

LEAST_TEMPERATURE = 1e-4


def settled(temperature: float) -> float:
    """A temperature too small to draw with takes the likeliest token, as 0 does."""
    return temperature if temperature >= LEAST_TEMPERATURE else 0.0


Temperature = Annotated[float, Field(ge=0, le=10), AfterValidator(settled)]
TopP = Annotated[float, Field(ge=1e-6, le=1)]
MinP = Annotated[float, Field(ge=0, le=1)]
Repetition = Annotated[float, Field(ge=0.01, le=10)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Bias = Annotated[float, Field(ge=-100, le=100)]
