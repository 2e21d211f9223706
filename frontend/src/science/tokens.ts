/** Token texts as they are shown: white space is made visible where it would otherwise be lost. */

const VISIBLE: Record<string, string> = { "\n": "↵", "\t": "⇥", "\r": "␍", "\u00a0": "⍽" };

/** A token on its own, in a list or a bar: leading and trailing spaces become "␣". */
export function tokenLabel(text: string): string {
  if (text === "") return "∅";
  return text
    .replace(/[\n\t\r\u00a0]/g, (sign) => VISIBLE[sign] ?? sign)
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
}

/** What stands for a token that is part of a character: the character itself is on the token that completes it. */
const PART = "·";

/** A token inside running text: spaces stay spaces, line ends are marked. */
export function tokenInText(text: string): string {
  if (text === "") return PART;
  return text.replace(/[\n\t\r]/g, (sign) => VISIBLE[sign] ?? sign);
}

/** A token as a screen reader should say it. */
export function tokenSpoken(text: string): string {
  const bare = text.trim();
  if (bare !== "") return bare;
  if (text.includes("\n")) return "line end";
  return text === "" ? "part of a character" : "space";
}
