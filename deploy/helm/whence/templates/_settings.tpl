{{/* The settings that the values ask for, and on top of them those of .Values.settings. */}}
{{- define "whence.settings" -}}
{{- $derived := dict "WHENCE_METRICS_LISTEN" "0.0.0.0:9464" "WHENCE_DATA_DIR" "/data" "OTEL_SERVICE_NAME" "whence" -}}
{{- with .Values.upstream }}{{ $_ := set $derived "WHENCE_UPSTREAM" . }}{{ end -}}
{{- with .Values.modelName }}{{ $_ := set $derived "WHENCE_MODEL_NAME" . }}{{ end -}}
{{- if .Values.encryption.secret }}{{ $_ := set $derived "WHENCE_JOURNAL_KEY" "/etc/whence/encryption/master.key" }}{{ end -}}
{{- if eq .Values.mode "sidecar" -}}
{{- $_ := set $derived "WHENCE_LISTEN" "unix:/run/whence/whence.sock" -}}
{{- $_ := set $derived "WHENCE_INSECURE_METRICS_ANYWHERE" "true" -}}
{{- else -}}
{{- $_ := set $derived "WHENCE_LISTEN" "0.0.0.0:50051,unix:/run/whence/whence.sock" -}}
{{- $_ := set $derived "WHENCE_HTTP_LISTEN" "0.0.0.0:8000" -}}
{{- $_ := set $derived "WHENCE_TLS_CERT" "/etc/whence/tls/tls.crt" -}}
{{- $_ := set $derived "WHENCE_TLS_KEY" "/etc/whence/tls/tls.key" -}}
{{- $_ := set $derived "WHENCE_SOCKET_SCOPES" "none" -}}
{{- $_ := set $derived "WHENCE_PUBLIC_SERVICES" "health,metrics" -}}
{{- if .Values.tls.clientCertificates }}{{ $_ := set $derived "WHENCE_TLS_CLIENT_CA" "/etc/whence/tls/ca.crt" }}{{ end -}}
{{- if .Values.auth.callersSecret }}{{ $_ := set $derived "WHENCE_AUTH_TOKENS" "/etc/whence/callers/callers.jsonl" }}{{ end -}}
{{- with .Values.auth.jwt }}{{ if .jwks -}}
{{- $_ := set $derived "WHENCE_AUTH_JWKS" .jwks -}}
{{- $_ := set $derived "WHENCE_AUTH_JWT_ISSUER" .issuer -}}
{{- $_ := set $derived "WHENCE_AUTH_JWT_AUDIENCE" .audience -}}
{{- end }}{{ end -}}
{{- end -}}
{{- range $name, $value := mergeOverwrite $derived .Values.settings }}
{{- if not (kindIs "invalid" $value) }}
{{ $name }}: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end -}}
