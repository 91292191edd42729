"""The two ends of every signed scale, its middle, and what is neither."""

RED, WHITE, BLUE = "rgb(178,24,43)", "rgb(247,247,247)", "rgb(33,102,172)"
GREY = "rgb(110,120,135)"
ORANGE = "rgb(214,134,16)"
"""What somebody marked."""
CLEAR = "rgba(0,0,0,0)"
"""Behind what is drawn: the page's own colour, light or dark."""
