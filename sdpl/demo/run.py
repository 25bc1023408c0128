"""The demo: the main path from data to measured bundle, on the embedded digit scenes."""

import json
from dataclasses import asdict
from pathlib import Path

import yaml
from click import Context
from PIL import Image
from rich.console import Console
from rich.table import Table

from sdpl import cli
from sdpl.bundle import DEFAULT_TARGET, Bundle
from sdpl.demo import tiny_clip
from sdpl.demo.scenes import write_coco
from sdpl.files import replace_file, replace_folder
