"""A generation's record as one self-contained HTML page."""

from whence.page.document import make_page
from whence.page.file import check_writable, write_page

__all__ = ["check_writable", "make_page", "write_page"]
