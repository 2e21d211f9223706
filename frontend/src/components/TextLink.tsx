import { Anchor, type AnchorProps } from "@mantine/core";
import { createLink } from "@tanstack/react-router";
import { forwardRef, type AnchorHTMLAttributes } from "react";

type TextAnchorProps = AnchorProps & Omit<AnchorHTMLAttributes<HTMLAnchorElement>, keyof AnchorProps>;

const TextAnchor = forwardRef<HTMLAnchorElement, TextAnchorProps>(function TextAnchor(props, ref) {
  return <Anchor ref={ref} {...props} />;
});

/** A link in text or a table to another page of the application. */
export const TextLink = createLink(TextAnchor);
