// The form for a token, where the server asks for one.

import { make, visible } from "./parts.js";
import { ask } from "./requests.js";

/** Shows the form in place of a view; `entered` is called once the token is accepted. */
export function askForToken(main, entered) {
  const input = make("input", "");
  input.type = "password";
  input.name = "token";
  input.required = true;
  input.autocomplete = "current-password";
  const label = make("label", "", "Token", input);
  const button = make("button", "primary", "Log in");
  const said = make("p", "wrong");
  said.setAttribute("role", "alert");
  const form = make("form", "sheet", make("h1", "", "Log in"), make(
    "p",
    "",
    "This server shows its record to callers with a token. It stays in this browser until you log out.",
  ), label, button, said);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    said.textContent = "";
    try {
      await ask("/login", {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Whence-Request": "1" },
        body: JSON.stringify({ token: input.value }),
      });
      entered();
    } catch (error) {
      said.textContent = error.status === 401 ? "This token is not known here." : `${visible(error.message)}.`;
      input.select();
    }
  });
  document.title = "Log in · whence";
  main.className = "";
  main.replaceChildren(form);
  input.focus();
}

/** Ends the login of this browser. */
export function logOut() {
  return ask("/logout", { method: "POST", headers: { "X-Whence-Request": "1" } });
}
