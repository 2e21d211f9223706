/** Names of the WebSocket messages. */

import { ApiError } from "@/api/errors";
import type { components } from "./schema";

type Schemas = components["schemas"];

export type LiveRequest = Schemas["LiveRequest"];
export type LiveAnswer = Schemas["LiveAnswer"];
export type JobsRequest = Schemas["JobsRequest"];
export type JobsAnswer = Schemas["JobsAnswer"];
export type Opened = Schemas["Opened"];
export type Result = Schemas["Result"];
export type Receipt = Schemas["Receipt"];
export type ResidentMessage = Schemas["ResidentState"];
export type Failure = Schemas["Failure"];
export type FeatureValues = Schemas["FeatureValues"];
export type PromptToken = Schemas["PromptToken"];
export type Generated = Schemas["Generated"];
export type GenerationEnded = Schemas["GenerationEnded"];
export type PositionShifts = Schemas["PositionShifts"];
export type AttentionExplained = Schemas["AttentionExplained"];
export type GraphBegun = Schemas["GraphBegun"];
export type GraphProgress = Schemas["GraphProgress"];
export type GraphEnded = Schemas["GraphEnded"];

/** A refusal that came over a socket, in the shape of every other error. */
export function failureError(failure: Failure): ApiError {
  return new ApiError(0, [{ code: failure.code, detail: failure.message, hint: failure.hint, attr: null }]);
}
