"""Print what SAM makes of a template, as JSON; run by the Python of .tools/checks.

    python sam_transform.py TEMPLATE [NAME=VALUE ...]

Exit status 1, with the mistakes on stderr, if it makes nothing of it.
"""

from __future__ import annotations

import json
import sys

from boto3 import Session
from samtranslator.model.exceptions import InvalidDocumentException
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator
from samtranslator.yaml_helper import yaml_parse


def main(path: str, *parameters: str) -> None:
    with open(path) as file:
        template = yaml_parse(file)
    values = dict(each.split("=", 1) for each in parameters)
    translator = Translator({}, Parser(), boto_session=Session(region_name="us-east-1"))
    try:
        made = translator.translate(template, values)
    except InvalidDocumentException as error:
        sys.exit("\n".join(cause.message for cause in error.causes))
    print(json.dumps(made, indent=2))


if __name__ == "__main__":
    main(*sys.argv[1:])
