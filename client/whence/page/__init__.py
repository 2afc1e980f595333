"""A generation's record as one self-contained HTML page."""

from whence.page.document import page
from whence.page.file import check_writable, write_page

__all__ = ["check_writable", "page", "write_page"]
