"""A generation as one self-contained page of HTML: made by the client, of the record alone."""

from whence.page.document import page
from whence.page.file import check_writable, write_page

__all__ = ["check_writable", "page", "write_page"]
